"""Reading tensors inside a portable .onnx: a cut copy of the graph gives a few of them as its outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from spikeexport.calibration.foundation.errors import GraphError

_BLOCK = re.compile(r"^(?P<module>(.*\.)?(layers|h|blocks)\.\d+)/[^/]+$")
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Tap:
    """A tensor to read: the output of one module of the checkpoint.

    Attributes:
        module: The checkpoint's module path.
        kind: A linear, or a whole decoder block.
        value: Name of the tensor in the graph, [batch, sequence, width].
        width: Its last axis, 0 where the graph does not say.
        order: Position in the graph.
    """

    module: str
    kind: Literal["linear", "block"]
    value: str
    width: int
    order: int


def find_taps(graph: ir.Graph, linears: Sequence[str]) -> list[Tap]:
    """Finds the outputs of the given linears (bias included) and of every block, in the order of the graph.

    A module's output is that of the last node named `<module>/<operator>`.
    """
    wanted = set(linears)
    last: dict[str, tuple[int, ir.Node]] = {}
    kinds: dict[str, Literal["linear", "block"]] = {}
    for order, node in enumerate(graph):
        module, _, operator = str(node.name).partition("/")
        if module in wanted and "/" not in operator:
            last[module], kinds[module] = (order, node), "linear"
        elif found := _BLOCK.match(str(node.name)):
            last[found["module"]], kinds[found["module"]] = (order, node), "block"
    taps = [
        Tap(module, kinds[module], str(node.outputs[0].name), _width(node.outputs[0]), order)
        for module, (order, node) in last.items()
    ]
    return sorted(taps, key=lambda tap: tap.order)


def chunk_taps(taps: Sequence[Tap], tokens: int, limit_bytes: int) -> Iterator[list[Tap]]:
    """Cuts taps into chunks whose float32 tensors of `tokens` tokens stay within `limit_bytes` (at least one each)."""
    chunk: list[Tap] = []
    size = 0
    for tap in taps:
        bytes_needed = 4 * tokens * max(tap.width, 1)
        if chunk and size + bytes_needed > limit_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(tap)
        size += bytes_needed
    if chunk:
        yield chunk


class TapSession:
    """A cut copy of a portable .onnx in ONNX Runtime, with taps as its outputs and nothing computed behind them."""

    def __init__(self, path: Path, taps: Sequence[Tap]) -> None:
        """Loads the graph of `path`, whose external data is read where it lies.

        Raises:
            GraphError: ONNX Runtime refuses the cut graph.
        """
        self._taps = list(taps)
        self._session = open_cut_session(path, cut_graph(path, taps), taps[-1].module)

    def run(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns module path -> output for token ids int64 [B, S] from the start, in the graph's floating point."""
        batch, length = ids.shape
        tokens = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
        }
        feeds = {
            declared.name: tokens[declared.name] if declared.name in tokens else _empty_past(declared, batch)
            for declared in self._session.get_inputs()
        }
        names = [tap.value for tap in self._taps]
        outputs = self._session.run(names, feeds)
        return {tap.module: np.asarray(output) for tap, output in zip(self._taps, outputs, strict=True)}


def open_cut_session(path: Path, graph: bytes, last: str) -> Any:
    """Opens a part of the graph of `path`, whose external data is read where it lies.

    Args:
        path: The .onnx.
        graph: The part, serialised.
        last: Module path of its last output, for messages.

    Raises:
        GraphError: ONNX Runtime refuses it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Anything beyond BASIC fuses Q/DQ into integer kernels, whose results are another backend's, not the file's.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry(_FOLDER_KEY, str(path.parent.resolve()))
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GraphError(
            f"{path}: ONNX Runtime refuses the graph cut at {last} ({error}); --no-layers leaves it out."
        ) from error


def cut_graph(path: Path, taps: Sequence[Tap]) -> bytes:
    """Returns the graph of `path` with `taps` as its outputs and without what does not lead to them, serialised."""
    model = ir.load(path)
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[tap.value] for tap in taps)
    RemoveUnusedNodesPass()(model)
    for unused in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(unused)
    return ir.to_proto(model).SerializeToString()


def _empty_past(declared: Any, batch: int) -> np.ndarray:
    """Returns a past of length 0 for a declared input [batch, kv_heads, past, head_dim]."""
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}.get(declared.type)
    if dtype is None:
        raise GraphError(f"{declared.name} is {declared.type}: ONNX Runtime's CPU kernels take fp32 and fp16 graphs.")
    return np.zeros((batch, declared.shape[1], 0, declared.shape[3]), dtype=dtype)


def _width(value: ir.Value) -> int:
    shape = value.shape
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else 0
