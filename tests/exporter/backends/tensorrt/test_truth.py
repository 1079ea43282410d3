"""The verdict on linears and attentions, on a recorded build with one planted fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from spikeexport.backends.tensorrt.kernels import is_attention, is_int8_product, is_product, operations
from spikeexport.backends.tensorrt.layer_log import read_layer_log
from spikeexport.backends.tensorrt.truth import count_kernels, engine_truth
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.graphs.tensorrt.roles import Roles

SAMPLE = Path(__file__).with_name("samples") / "rtx-1.7.1.116-layers.txt"
LAYER = "model.layers.0"
LINEARS = [f"{LAYER}.self_attn.{name}_proj" for name in "qkvo"] + [
    f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down")
]
DOWN = LINEARS[-1]
ROLES = Roles({name: f"{name}/MatMul" for name in LINEARS}, {f"{LAYER}.self_attn": (f"{LAYER}.self_attn/Attention",)})


@pytest.fixture(scope="module")
def layers():
    return read_layer_log([SAMPLE.read_text(encoding="utf-8")], "1.7.1.116")


def test_planted_fault_is_the_only_fallback_and_carries_the_lints_reason(layers):
    truth = engine_truth(layers, ROLES, LINEARS, {DOWN: "scale along the inputs (turn it)"})
    assert [fallback.name for fallback in truth.fallbacks] == [DOWN]
    assert truth.fallbacks[0].why.startswith("scale along the inputs (turn it): computed in prefill by __myl_Cast")
    assert truth.int8 == 6


def test_reading_int8_and_converting_before_the_product_is_no_int8_product(layers):
    fused = next(layer for layer in layers if f"{DOWN}/MatMul" in layer.onnx_nodes and is_product(layer))
    assert [tensor.dtype for tensor in (*fused.inputs, *fused.constants[:1])] == ["int8", "int8"]
    assert operations(fused)[0] == "Cast"
    assert not is_int8_product(fused)


def test_every_int8_linear_is_in_exactly_one_product(layers):
    truth = engine_truth(layers, ROLES, LINEARS, {})
    members = [linear for linears in truth.merged.values() for linear in linears]
    assert sorted(members) == sorted(LINEARS[:-1])
    assert sorted(LINEARS[:3]) in [sorted(linears) for linears in truth.merged.values()]


def test_attention_is_fused_in_both_profiles(layers):
    assert engine_truth(layers, ROLES, LINEARS, {}).attention_fused == 1
    without_decode = [layer for layer in layers if not (is_attention(layer) and layer.profile == 1)]
    truth = engine_truth(without_decode, ROLES, LINEARS, {})
    assert truth.attention_fused == 0
    assert truth.attention_unfused == (f"{LAYER}.self_attn",)


def test_a_product_beside_the_fused_attention_means_it_was_split(layers):
    attention = next(layer for layer in layers if is_attention(layer))
    beside = replace(attention, name="scores_myl1_99", kind="gemm", tactic="gemm")
    assert engine_truth([*layers, beside], ROLES, LINEARS, {}).attention_fused == 0


def test_layers_that_name_nothing_of_the_graph_are_refused(layers):
    other = Roles({"decoder.0.q": "decoder.0.q/MatMul"}, {})
    with pytest.raises(BackendError, match="name none of the graph's linears"):
        engine_truth(layers, other, ["decoder.0.q"], {})


def test_a_linear_that_no_kernel_names_is_a_fallback(layers):
    roles = Roles({**ROLES.linears, "model.layers.0.extra": "model.layers.0.extra/MatMul"}, {})
    truth = engine_truth(layers, roles, ["model.layers.0.extra"], {})
    assert truth.fallbacks[0].why == "no matrix product of the engine names it in prefill"


def test_kernels_are_counted_per_profile_and_layer(layers):
    assert count_kernels(layers) == {"prefill": 20, "prefill_per_layer": 13, "decode": 14, "decode_per_layer": 12}
