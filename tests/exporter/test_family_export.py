"""Every family goes from profile to an INT8 graph that runs, with folds and a prefix."""

from __future__ import annotations

import numpy as np
import pytest
from spikeexport import export
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.structure.sites import discover

from tests.family_cases import CASES
from tests.family_parity import PREFIX, open_case
from tests.graphs.decoder_runs import call, reference_logits
from tests.tiny_models import tiny_family

IDS = np.random.default_rng(3).integers(3, 380, (1, 24))
EXPORT = {"samples": 8, "seqlen": 48, "qfep": "ids:7,300,1", "qfem": "off", "dtype": "fp32"}


def _session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("family", CASES)
def test_int8_graph_is_near_hugging_face(family, tmp_path, sample_text_file):
    label = list(CASES[family])[-1]
    checkpoint = open_case(family, label, tmp_path / "m")
    result = export(tmp_path / "m", tmp_path / "x.onnx", calibration=[str(sample_text_file)], **EXPORT)
    model = load_model(checkpoint)
    structure = discover(model)
    assert result.linears == len(structure.linears) == len(result.plan.quantized_linears)
    assert {fold.kind for fold in result.plan.folds} >= {"v_o", "up_down"} - _without_value_fold(family)
    expected = reference_logits(model, IDS, PREFIX)
    found, _ = call(_session(tmp_path / "x.onnx"), IDS)
    # The median of the tokens: rounding sends some of them to another expert than the exact model.
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert np.median((found * expected).sum(-1) / lengths) > 0.97


def _without_value_fold(family: str) -> set[str]:
    # Clipping stands between OLMoE's values and its output.
    return {"v_o"} if family == "olmoe" else set()


def test_excluded_expert_alone_stays_unquantised(tmp_path, sample_text_file):
    tiny_family("mixtral", tmp_path / "m")
    expert = "model.layers.1.block_sparse_moe.experts.3"
    options = {**EXPORT, "exclude": ["layers.1.block_sparse_moe.experts.3.w2"]}
    result = export(tmp_path / "m", tmp_path / "x.onnx", calibration=[str(sample_text_file)], **options)
    assert result.plan.excluded_linears == (f"{expert}.w2",)
    assert f"{expert}.w1" in result.plan.quantized_linears


def test_fused_linears_are_decided_together(tmp_path, sample_text_file):
    tiny_family("phi3", tmp_path / "m")
    names = {linear.rsplit(".", 1)[-1] for linear in discover(load_model(open_checkpoint(tmp_path / "m"))).linears}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    options = {**EXPORT, "exclude": ["layers.2.mlp.gate_up_proj"]}
    result = export(tmp_path / "m", tmp_path / "x.onnx", calibration=[str(sample_text_file)], **options)
    assert result.plan.excluded_linears == ("model.layers.2.mlp.gate_up_proj",)
    assert {fold.rows for fold in result.plan.folds if fold.kind == "up_down"} == {(128, 256)}
