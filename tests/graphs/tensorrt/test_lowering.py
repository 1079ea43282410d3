"""The lowering for TensorRT: the same numbers from fewer nodes, twice the same as once, weights written once."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from spikeexport.graphs.passes.linears import MODULE_KEY
from spikeexport.graphs.saving import save_model
from spikeexport.graphs.tensorrt.join_qkv import JoinQkv
from spikeexport.graphs.tensorrt.lowering import JOINED_DATA, lower, write_lowered

from tests.constant_plan import portable_graph, write_portable
from tests.tiny_models import tiny_family

TOLERANCE = 2e-5
JOINED = ("llama", "qwen2", "qwen3", "gemma3_text", "smollm3")


def _logits(path: Path, steps: int = 3) -> np.ndarray:
    """Runs a prompt of 7 tokens and then `steps` single tokens; returns all logits [1, 7 + steps, V]."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(3, 300, (1, 7 + steps))
    names = [item.name for item in session.get_outputs()]
    past = {
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past")
    }
    rows, seen = [], 0
    for new in (7, *[1] * steps):
        feeds = {
            "input_ids": tokens[:, seen : seen + new],
            "attention_mask": np.ones((1, seen + new), np.int64),
            "position_ids": np.arange(seen, seen + new)[None],
            **past,
        }
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        rows.append(outputs["logits"])
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        seen += new
    return np.concatenate(rows, axis=1)


@pytest.mark.parametrize("family", JOINED)
def test_same_numbers_from_one_product(family, tmp_path):
    folder = tiny_family(family, tmp_path / family)
    path = write_portable(folder, tmp_path / "portable.onnx", dtype="fp32")
    (tmp_path / "lowered").mkdir()
    lowered = write_lowered(path, tmp_path / "lowered")
    assert np.abs(_logits(path) - _logits(lowered)).max() < TOLERANCE
    products = [node for node in ir.load(lowered).graph if "," in node.metadata_props.get(MODULE_KEY, "")]
    assert len(products) == 3
    assert products[0].metadata_props[MODULE_KEY].split(",") == [
        f"model.layers.0.self_attn.{name}_proj" for name in "qkv"
    ]


def test_twice_is_once(tiny_llama_folder):
    model = portable_graph(tiny_llama_folder)
    first = JoinQkv()(model)
    assert first.modified
    names = [node.name for node in model.graph]
    again = JoinQkv()
    assert not again(model).modified
    assert [node.name for node in model.graph] == names
    assert len(again.skipped) == 3


def test_norm_over_all_heads_is_left_alone_and_says_why(tmp_path):
    model = portable_graph(tiny_family("olmo2", tmp_path / "olmo2"))
    join = JoinQkv()
    assert not join(model).modified
    assert len(join.skipped) == 3
    assert all("more than one head" in why for why in join.skipped.values())


def test_unquantised_graph_is_left_alone(tiny_llama_folder):
    model = portable_graph(tiny_llama_folder, quantised=False)
    join = JoinQkv()
    assert not join(model).modified
    assert all("not INT8" in why for why in join.skipped.values())


def test_only_joined_weights_are_written_again(tiny_llama_folder, tmp_path):
    path = write_portable(tiny_llama_folder, tmp_path / "portable.onnx")
    size = (tmp_path / "portable.onnx.data").stat().st_size
    folder = tmp_path / "lowered"
    folder.mkdir()
    lowered = write_lowered(path, folder)
    assert {file.name for file in folder.iterdir()} == {"portable.onnx", "portable.onnx.data", JOINED_DATA}
    assert (folder / "portable.onnx.data").samefile(tmp_path / "portable.onnx.data")
    assert (folder / JOINED_DATA).stat().st_size == pytest.approx(3 * 64 * 128, rel=0.1)
    assert (tmp_path / "portable.onnx.data").stat().st_size == size
    codes = {name for name in ir.load(lowered).graph.initializers if name.endswith("weight_q")}
    assert "model.layers.0.self_attn.qkv_proj.weight_q" in codes
    assert "model.layers.0.self_attn.q_proj.weight_q" not in codes


def test_codes_and_scales_are_those_of_the_projections(tiny_llama_folder, tmp_path):
    model = portable_graph(tiny_llama_folder)
    save_model(model, tmp_path / "m.onnx")
    before = copy.copy(dict(ir.load(tmp_path / "m.onnx").graph.initializers))
    after = lower(ir.load(tmp_path / "m.onnx")).graph.initializers
    for suffix, axis in (("weight_q", 1), ("weight_scale", 0)):
        parts = [before[f"model.layers.2.self_attn.{name}_proj.{suffix}"].const_value.numpy() for name in "qkv"]
        joined = after[f"model.layers.2.self_attn.qkv_proj.{suffix}"].const_value.numpy()
        np.testing.assert_array_equal(joined, np.concatenate(parts, axis=axis))
