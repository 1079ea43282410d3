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
from spikeexport.graphs.tensorrt.lint import lint
from spikeexport.graphs.tensorrt.lowering import JOINED_DATA, lower, write_lowered
from spikeexport.graphs.tensorrt.roles import find_roles

from tests.constant_plan import portable_graph, write_portable
from tests.graphs.decoder_runs import call
from tests.tiny_models import tiny_family

TOLERANCE = 2e-5
JOINED = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "cohere")
"""Families with unlike branches: plain, with biases, norms per head, capped scores, no or interleaved rotary."""


def _runs(path: Path) -> dict[str, np.ndarray]:
    """Runs a prompt, single tokens, a chunk behind the cache, and a batch with left padding; returns the logits."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(3, 300, (1, 12))
    logits, past = call(session, ids[:, :7])
    found = {"prompt": logits}
    for position in (7, 8):
        found[f"token {position}"], past = call(session, ids[:, position : position + 1], past=past)
    found["chunk"], _ = call(session, ids[:, 9:], past=past)
    rows = np.concatenate([np.roll(ids, 3, axis=1), ids])
    mask = np.ones_like(rows)
    mask[0, :3] = 0
    padded, past = call(session, rows[:, :11], mask[:, :11])
    assert np.isfinite(padded).all()
    found["padded"] = np.concatenate([padded[0, 3:], padded[1]])
    found["behind padding"], _ = call(session, rows[:, 11:], mask, past)
    return found


@pytest.mark.parametrize("family", JOINED)
def test_same_numbers_from_one_product(family, tmp_path):
    folder = tiny_family(family, tmp_path / family)
    path = write_portable(folder, tmp_path / "portable.onnx", dtype="fp32")
    (tmp_path / "lowered").mkdir()
    lowered = write_lowered(path, tmp_path / "lowered")
    expected, found = _runs(path), _runs(lowered)
    differences = {kind: float(np.abs(expected[kind] - found[kind]).max()) for kind in expected}
    assert max(differences.values()) < TOLERANCE, differences
    products = [node for node in ir.load(lowered).graph if "," in node.metadata_props.get(MODULE_KEY, "")]
    assert len(products) == 3
    assert products[0].metadata_props[MODULE_KEY].split(",") == [
        f"model.layers.0.self_attn.{name}_proj" for name in "qkv"
    ]


def test_full_precision_attention_is_written_out_and_half_precision_is_not(tiny_llama_folder):
    full = lower(portable_graph(tiny_llama_folder, dtype="fp32"))
    half = lower(portable_graph(tiny_llama_folder, dtype="fp16"))
    assert sum(node.op_type == "Attention" for node in full.graph) == 0
    assert sum(node.op_type == "Attention" for node in half.graph) == 3
    assert list(find_roles(full).attentions) == list(find_roles(half).attentions)
    assert {len(nodes) for nodes in find_roles(full).attentions.values()} == {3}
    assert {finding.rule for finding in lint(full)} == {"full-precision-attention"}


def test_lowering_twice_is_once(tiny_llama_folder):
    model = lower(portable_graph(tiny_llama_folder, dtype="fp32"))
    names = [node.name for node in model.graph]
    assert [node.name for node in lower(model).graph] == names


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
