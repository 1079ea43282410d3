"""The inspector's JSON of TensorRT 10 and 11, on samples written from the documented fields of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spikeexport.backends.tensorrt.inspector_json import read_inspector
from spikeexport.backends.tensorrt.truth import engine_truth
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.graphs.tensorrt.roles import Roles

SAMPLES = Path(__file__).with_name("samples")
LAYER = "model.layers.0"
ATTENTION = [f"{LAYER}.self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down")]
LINEARS = [*ATTENTION, *MLP]
ROLES = Roles({name: f"{name}/MatMul" for name in LINEARS}, {f"{LAYER}.self_attn": (f"{LAYER}.self_attn/Attention",)})


@pytest.mark.parametrize("version", [10, 11])
def test_both_schemas_tell_the_same_truth(version):
    layers = read_inspector((SAMPLES / f"tensorrt-{version}-inspector.json").read_text(encoding="utf-8"))
    truth = engine_truth(layers, ROLES, LINEARS, {})
    assert [fallback.name for fallback in truth.fallbacks] == [f"{LAYER}.mlp.down_proj"]
    assert "no INT8 product" in truth.fallbacks[0].why
    assert truth.int8_coverage == pytest.approx(6 / 7)
    assert sorted(map(sorted, truth.merged.values())) == sorted(
        [sorted(ATTENTION[:3]), [ATTENTION[3]], sorted(MLP[:2])]
    )
    assert (truth.attention_fused, truth.attention_layers) == (1, 1)
    assert truth.leftovers["quantize"].count == 2
    assert truth.leftovers["quantize"].bytes_moved == 64 * (2 + 1) * 2
    assert truth.kernels["prefill"] == truth.kernels["decode"] == 7


@pytest.mark.parametrize("version", [10, 11])
def test_a_linear_that_is_int8_in_one_profile_only_falls_back(version):
    data = json.loads((SAMPLES / f"tensorrt-{version}-inspector.json").read_text(encoding="utf-8"))
    for layer in data["Layers"]:
        if layer["Name"] == f"{LAYER}.self_attn.o_proj/MatMul [profile 1]":
            layer["TacticName"] = "sm80_xmma_gemm_f16f16_f16f32_f32_nn"
            layer["Inputs"][0].update({"Format/Datatype": "Half", "Datatype": "Half"})
    truth = engine_truth(read_inspector(json.dumps(data)), ROLES, LINEARS, {})
    why = {fallback.name: fallback.why for fallback in truth.fallbacks}
    assert "in decode" in why[ATTENTION[3]]


def test_types_are_read_in_every_wording():
    data = json.loads((SAMPLES / "tensorrt-10-inspector.json").read_text(encoding="utf-8"))
    layers = read_inspector(json.dumps(data))
    assert {tensor.dtype for layer in layers for tensor in (*layer.inputs, *layer.outputs)} == {"fp16", "fp32", "int8"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"Layers": []}', "lists no layers"),
        ('{"Layers": ["a", "b"]}', "only the names"),
        ('{"Layers": [{"Name": "a"}]}', "no Name or LayerType"),
    ],
)
def test_other_answers_are_refused(text, words):
    with pytest.raises(BackendError, match=words):
        read_inspector(text)
