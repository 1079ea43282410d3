"""Each pass alone: what it rewrites, that the numbers stay, what it refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.graphs.onnxruntime.block_embedding import BlockEmbedding, block_codes, block_scales
from spikeexport.graphs.onnxruntime.float32 import HALF, CastToFloat32
from spikeexport.graphs.onnxruntime.group_query_attention import FuseGroupQueryAttention
from spikeexport.graphs.onnxruntime.lowering import LOWERING, lower
from spikeexport.graphs.onnxruntime.mask_probe import why_not_causal
from spikeexport.graphs.onnxruntime.packed_qkv import PackQkv

from tests.lowered_models import open_pair, portable, random_ids
from tests.tiny_models import tiny_family

NAMES = tuple(step.name for step in LOWERING)


def without_all_but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in NAMES if name not in names)


@pytest.mark.parametrize("name", ["rms-norm", "packed-qkv", "logit-positions"])
def test_a_pass_added_to_attention_fusion_keeps_the_numbers(name, tiny_llama_folder, tmp_path):
    base = open_pair(
        tiny_llama_folder, tmp_path / "base", quantised=False, without=without_all_but("group-query-attention")
    )
    more = open_pair(
        tiny_llama_folder,
        tmp_path / "more",
        quantised=False,
        without=without_all_but("group-query-attention", name),
    )
    assert next(report.applied for report in more.reports if report.name == name) > 0
    ids = random_ids(2, 11)
    expected, _ = base.lowered.prefill(ids)
    found, _ = more.lowered.prefill(ids)
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)
    last, _ = more.lowered.prefill(ids, last_only=True)
    np.testing.assert_allclose(last, expected[:, -1:], atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_float32_leaves_no_half_value(dtype, tiny_llama_folder):
    model = portable(tiny_llama_folder, dtype=dtype)
    step = CastToFloat32()
    step(model)
    assert step.applied
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    assert not [value.name for value in values if value.dtype in HALF]
    assert not [n.name for n in model.graph if n.op_type == "Cast" and n.attributes["to"].as_int() in HALF]
    step(model)
    assert step.applied == 0


def test_fp16_file_lowers_to_its_own_values_in_fp32(tiny_llama_folder, tmp_path):
    pair = open_pair(tiny_llama_folder, tmp_path, dtype="fp16", quantised=False, without=("int8-embedding",))
    ids = random_ids(1, 12)
    expected, _ = pair.portable.prefill(ids)
    found, _ = pair.lowered.prefill(ids)
    assert 0 < np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


def test_lowering_twice_changes_nothing(tiny_llama_folder):
    model = portable(tiny_llama_folder, dtype="fp16", prefix=True, excluded=("model.layers.1.mlp.down_proj",))
    lower(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    reports = lower(model)
    assert {report.name: report.applied for report in reports if report.applied} == {}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_each_pass_can_be_switched_off(tiny_llama_folder):
    for name in NAMES:
        reports = lower(portable(tiny_llama_folder), without=(name,))
        off = next(report for report in reports if report.name == name)
        assert (off.applied, off.skips[0].why) == (0, "switched off")


def test_an_unknown_pass_is_named():
    with pytest.raises(UsageError, match=r"'skip-nrom'.*skip-norm"):
        lower(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), without=("skip-nrom",))


def test_packed_weights_scales_and_biases_stand_side_by_side(tmp_path):
    model = portable(tiny_family("qwen2", tmp_path / "qwen2"))
    lower(model, without=("packed-qkv",))
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    single = {node.name: node for node in model.graph}
    parts = [single[f"{name}/MatMulIntegerToFloat"].inputs for name in names]
    PackQkv()(model)
    node = next(node for node in model.graph if node.name == "model.layers.0.self_attn.qkv_proj/MatMulIntegerToFloat")
    assert node.metadata_props["spikeexport.module"].split() == names
    for place, axis in ((1, 1), (3, 0), (6, 0)):
        expected = np.concatenate([part[place].const_value.numpy() for part in parts], axis=axis)
        np.testing.assert_array_equal(node.inputs[place].const_value.numpy(), expected)
    assert node.inputs[1].shape == (64, 128)


def test_a_mask_with_a_window_keeps_the_portable_attention(tiny_llama_folder):
    model = portable(tiny_llama_folder)
    hide_keys_further_than(model.graph, 32)
    step = FuseGroupQueryAttention()
    step(model)
    assert step.applied == 0
    assert "mask is not plainly causal" in step.skips[0].why
    assert sum(node.op_type == "Attention" for node in model.graph) == 3


def hide_keys_further_than(graph: ir.Graph, window: int) -> None:
    """Plants a sliding window into the mask: key > query - window."""
    visible = next(node for node in graph if node.name == "attention_mask/visible")
    causal = next(node for node in graph if node.name == "attention_mask/causal")
    keys, queries = causal.inputs
    size = ir.val("window", const_value=ir.tensor(np.int64(window)[...], name="window"))
    graph.initializers.add(size)
    oldest = ir.node("Sub", [queries, size])
    near = ir.node("Greater", [keys, oldest.outputs[0]])
    both = ir.node("And", [causal.outputs[0], near.outputs[0]])
    graph.insert_before(visible, [oldest, near, both])
    visible.replace_input_with(1, both.outputs[0])


def test_the_probe_accepts_the_portable_mask_and_counts_the_prefix(tiny_llama_folder):
    graph = portable(tiny_llama_folder, prefix=True).graph
    mask = next(node for node in graph if node.name == "attention_mask/visible").outputs[0]
    assert why_not_causal(graph, mask, 3, 1024) is None
    assert "not plainly causal" in str(why_not_causal(graph, mask, 2, 1024))


def test_block_codes_are_within_half_a_step():
    table = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    table[3, :64] = 0
    scales = block_scales(table, 64)
    codes = block_codes(table, 64).astype(np.int64) - 128
    back = (codes * scales[:, :, None]).reshape(table.shape)
    assert np.abs(codes).max() == 127
    assert (np.abs(back - table) <= 0.5001 * np.repeat(scales, 64, axis=1)).all()
    assert not back[3, :64].any()


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_in_8_bits(tied, tmp_path):
    folder = tiny_family("llama", tmp_path / "llama", tie_word_embeddings=tied)
    model = portable(folder)
    step = BlockEmbedding()
    step(model)
    assert step.applied == 2
    tables = [name for name in model.graph.initializers if name.endswith(".blocks")]
    assert len(tables) == (1 if tied else 2)
    exact = open_pair(folder, tmp_path / "exact", quantised=False, without=("int8-embedding",)).lowered
    rounded = open_pair(folder, tmp_path / "rounded", quantised=False).lowered
    ids = random_ids(1, 16)
    expected, found = exact.prefill(ids)[0], rounded.prefill(ids)[0]
    error = found - expected
    assert 0 < error.std() < 0.03 * expected.std()


def test_an_odd_width_keeps_the_float_table(tmp_path):
    folder = tiny_family("llama", tmp_path / "llama", hidden_size=72, num_attention_heads=3, num_key_value_heads=3)
    step = BlockEmbedding()
    step(portable(folder))
    assert step.applied == 0
    assert "72 is no multiple of 16" in step.skips[0].why
