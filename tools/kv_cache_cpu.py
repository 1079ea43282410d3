"""Whether an INT8 KV cache pays on this CPU: one step of attention in FP32 and in INT8, interleaved.

    python tools/kv_cache_cpu.py --heads 9 --kv-heads 3 --head-dim 64 --layers 30 --past 128 1024 4096

Prints a Markdown table: milliseconds of all layers' attention in one decode step, and the cache's bytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
from spikeexport.bench import describe_machine
from spikeexport.runners.cpu import physical_cores


@dataclass(frozen=True)
class Attention:
    """Shapes of one layer's attention."""

    heads: int
    kv_heads: int
    head_dim: int


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--past", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    attention = Attention(chosen.heads, chosen.kv_heads, chosen.head_dim)
    print(
        "| past tokens | FP32, ms | INT8, ms | INT8 is faster by | FP32 cache, MB | INT8 cache, MB |\n|" + " --- |" * 6
    )
    for past in chosen.past:
        times = measure(attention, past, chosen.layers, chosen.rounds)
        ratio = statistics.median(slow / fast for slow, fast in zip(times[False], times[True], strict=True))
        wide, narrow = (1e3 * statistics.median(times[kind]) for kind in (False, True))
        size = 2 * chosen.layers * attention.kv_heads * attention.head_dim * past / 1e6
        print(f"| {past} | {wide:.2f} | {narrow:.2f} | {ratio:.2f} x | {4 * size:.1f} | {size:.1f} |")
    print("\nMachine: " + ", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    return 0


def measure(attention: Attention, past: int, layers: int, rounds: int) -> dict[bool, list[float]]:
    """Returns for FP32 (False) and INT8 (True): seconds of `layers` steps, each on a cache of its own, per round."""
    runs = {int8: prepare(attention, past, layers, int8=int8) for int8 in (False, True)}
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for int8 in (False, True) if number % 2 else (True, False):
            session, bindings, _ = runs[int8]
            started = time.perf_counter()
            for binding in bindings:
                session.run_with_iobinding(binding)
            if number:
                times[int8].append(time.perf_counter() - started)
    return times


def prepare(attention: Attention, past: int, layers: int, *, int8: bool) -> tuple[Any, list[Any], list[np.ndarray]]:
    """Opens one attention and binds it to `layers` caches; returns session, bindings and what they point to."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = physical_cores(), 3
    session = onnxruntime.InferenceSession(
        attention_model(attention, int8=int8).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    width = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    feeds = {
        "qkv": random.normal(size=(1, 1, width)).astype(np.float32),
        "seqlens_k": np.array([past], np.int32),
        "total_sequence_length": np.array(past + 1, np.int32),
    }
    kept = [*feeds.values()]
    bindings = [_bind(session, attention, past, feeds, kept, int8=int8) for _ in range(layers)]
    return session, bindings, kept


def attention_model(attention: Attention, *, int8: bool) -> onnx.ModelProto:
    """Returns one GroupQueryAttention with packed q/k/v and a shared cache, in FP32 or per-tensor INT8."""
    kind = onnx.TensorProto.INT8 if int8 else onnx.TensorProto.FLOAT
    cache = [1, attention.kv_heads, "capacity", attention.head_dim]
    inputs = [
        oh.make_tensor_value_info("qkv", onnx.TensorProto.FLOAT, [1, 1, None]),
        *(oh.make_tensor_value_info(name, kind, cache) for name in ("past_k", "past_v")),
        oh.make_tensor_value_info("seqlens_k", onnx.TensorProto.INT32, [1]),
        oh.make_tensor_value_info("total_sequence_length", onnx.TensorProto.INT32, []),
    ]
    outputs = [
        oh.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, 1, None]),
        *(oh.make_tensor_value_info(name, kind, cache) for name in ("present_k", "present_v")),
    ]
    scales = {name: oh.make_tensor(name, onnx.TensorProto.FLOAT, [1], [0.05]) for name in ("k_scale", "v_scale")}
    names = ["qkv", "", "", "past_k", "past_v", "seqlens_k", "total_sequence_length"]
    quantised = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8} if int8 else {}
    node = oh.make_node(
        "GroupQueryAttention",
        names + (["", "", "", "", "", *scales] if int8 else []),
        ["out", "present_k", "present_v"],
        domain="com.microsoft",
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        **quantised,
    )
    graph = oh.make_graph([node], "attention", inputs, outputs, list(scales.values()) if int8 else [])
    opsets = [oh.make_opsetid("", 21), oh.make_opsetid("com.microsoft", 1)]
    return oh.make_model(graph, opset_imports=opsets, ir_version=10)


def _bind(
    session: Any, attention: Attention, past: int, feeds: dict[str, np.ndarray], kept: list[np.ndarray], *, int8: bool
) -> Any:
    """Binds one layer; a binding holds addresses only, so its cache goes into `kept`."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    shape = (1, attention.kv_heads, past + 1, attention.head_dim)
    random = np.random.default_rng(1)
    for letter in "kv":
        codes = random.integers(-127, 128, shape)
        array = codes.astype(np.int8) if int8 else (0.05 * codes).astype(np.float32)
        binding.bind_input(f"past_{letter}", "cpu", 0, array.dtype, shape, array.ctypes.data)
        binding.bind_output(f"present_{letter}", "cpu", 0, array.dtype, shape, array.ctypes.data)
        kept.append(array)
    binding.bind_output("out", "cpu")
    return binding


if __name__ == "__main__":
    sys.exit(main())
