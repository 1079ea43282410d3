"""`build --backend onnxruntime` on tiny models: the folder runs alone, and the truth is read from what really runs."""

from __future__ import annotations

import shutil

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.backends.base import BuildOptions
from spikeexport.backends.manifest import MANIFEST_NAME
from spikeexport.backends.onnxruntime.backend import MODEL_NAME, OnnxRuntimeBackend
from spikeexport.backends.onnxruntime.truth import node_modules, optimized_graph, read_truth
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import CheckFailed, UsageError
from spikeexport.graphs.onnxruntime.lowering import lower
from spikeexport.graphs.reading import read_portable
from spikeexport.graphs.saving import save_model
from spikeexport.runners.assets import Assets
from spikeexport.runners.onnx_runner import OnnxRunner, open_onnx_runner
from spikeexport.runners.ort_session import SessionSettings
from spikeexport.runners.subject import open_subject

from tests.lowered_models import PREFIX_IDS, portable, random_ids

EXCLUDED = ("model.layers.1.mlp.down_proj",)


@pytest.fixture(scope="module")
def onnx_file(tiny_llama_folder, tmp_path_factory):
    """A portable file with a prefix, one excluded linear and its assets."""
    file = tmp_path_factory.mktemp("portable") / "tiny.onnx"
    save_model(portable(tiny_llama_folder, dtype="fp32", prefix=True, excluded=EXCLUDED), file)
    shutil.copytree(tiny_llama_folder, file.with_suffix(".assets"))
    return file


@pytest.fixture(scope="module")
def built(onnx_file, tmp_path_factory):
    return build(onnx_file, tmp_path_factory.mktemp("built") / "tiny.onnxruntime", backend="onnxruntime")


def test_every_planned_linear_is_an_integer_product(built):
    truth = built.manifest.truth
    assert (len(truth.planned), truth.int8, truth.int8_coverage, truth.fallbacks) == (20, 20, 1.0, ())
    assert sorted(name for group in truth.merged.values() for name in group) == sorted(truth.planned)
    assert truth.merged["model.layers.0.self_attn.qkv_proj/MatMulIntegerToFloat"] == tuple(
        f"model.layers.0.self_attn.{part}_proj" for part in "qkv"
    )
    assert (truth.attention_fused, truth.attention_layers) == (3, 3)
    assert built.manifest.excluded == EXCLUDED


def test_each_phase_says_its_form(built, onnx_file, tmp_path):
    target, kernels = built.manifest.target, built.manifest.truth.kernels
    assert target["prefill"] == "20 linears W8A8, 1 linears weight-only (MatMulNBits, 8 bits)"
    assert target["decode"] == "as prefill: one graph for both phases"
    assert kernels["decode"] == kernels["prefill"]
    assert not (built.path / "decode.onnx").exists()
    weight_only = build(onnx_file, tmp_path / "weight_only", backend="onnxruntime", decode="weight-only")
    assert weight_only.manifest.target["decode"] == "21 linears weight-only (MatMulNBits, 8 bits)"
    kernels = weight_only.manifest.truth.kernels
    assert kernels["decode"] < kernels["prefill"]


def test_a_runtime_that_widens_weights_decodes_in_the_prefill_form(onnx_file, tmp_path, monkeypatch):
    """ONNX Runtime before 1.32 multiplies the dequantised weight: the decode form would be slow and is removed."""
    monkeypatch.setattr("spikeexport.runners.ort_session._WEIGHT_ONLY", {"session.disable_quant_qdq": "1"})
    folder = build(onnx_file, tmp_path / "old", backend="onnxruntime", decode="weight-only")
    assert "widens the INT8 weight" in folder.manifest.target["decode"]
    assert not (folder.path / "decode.onnx").exists()


def test_the_folder_runs_on_its_own(built, onnx_file, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(built.path, moved)
    ids = random_ids(2, 9)
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    with open_subject(moved, threads=1) as lowered, open_onnx_runner(onnx_file) as exported:
        assert lowered.prefix_ids == exported.prefix_ids == PREFIX_IDS
        assert (lowered.bos_id, lowered.eos_ids) == (None, exported.eos_ids)
        assert lowered.tokenizer("a b").input_ids == exported.tokenizer("a b").input_ids
        expected, found = exported.prefill(ids, mask)[0], lowered.prefill(ids, mask)[0]
    error = (found - expected)[mask == 1]
    # The 8-bit embedding moves values over the edges of coarse made-up codes: 7 % here; a wrong graph is off by 100 %.
    assert error.std() < 0.15 * expected[mask == 1].std()


def test_a_missing_file_is_named(built, tmp_path):
    moved = tmp_path / "cut"
    shutil.copytree(built.path, moved)
    (moved / f"{MODEL_NAME}.data").unlink()
    with pytest.raises(Exception, match=r"model\.onnx\.data is missing"):
        open_subject(moved)


def test_options_for_gpus_are_refused(onnx_file, tmp_path):
    with pytest.raises(UsageError, match="--compute-capability is for GPUs"):
        build(onnx_file, tmp_path / "out", backend="onnxruntime", compute_capabilities=("8.9",))
    assert not (tmp_path / "out").exists()


def test_linears_left_in_floating_point_are_fallbacks(onnx_file, tmp_path):
    """A planted fault: one activation loses its Q/DQ, so its linears cannot be integer products."""
    source = read_portable(onnx_file)
    victim = "model.layers.0.mlp.gate_proj"
    dequantize = next(n for n in source.model.graph if n.name == f"{victim}/input/DequantizeLinear")
    quantize = dequantize.inputs[0].producer()
    ir.convenience.replace_all_uses_with(dequantize.outputs[0], quantize.inputs[0])
    broken = tmp_path / "broken.onnx"
    save_model(source.model, broken)
    shutil.copytree(onnx_file.with_suffix(".assets"), tmp_path / "broken.assets")
    with pytest.raises(CheckFailed, match=r"18 of 20 planned linears.*gate_proj: runs as MatMulNBits"):
        build(broken, tmp_path / "out", backend="onnxruntime")
    assert not (tmp_path / "out").exists()
    kept = build(broken, tmp_path / "out", backend="onnxruntime", min_int8_coverage=0)
    assert [fallback.name for fallback in kept.manifest.truth.fallbacks] == [victim, victim.replace("gate", "up")]


def test_fusions_of_onnxruntime_itself_count(tiny_llama_folder, tmp_path):
    """Without our integer pass ONNX Runtime fuses some Q/DQ by itself; the truth follows what it really made."""
    model = portable(tiny_llama_folder)
    lower(model, without=("integer-linears", "weight-only-linears"))
    save_model(model, tmp_path / "model.onnx")
    graph = optimized_graph(tmp_path / "model.onnx")
    planned = [name for name in node_modules(model.graph).values() if name != "lm_head"]
    truth = read_truth(graph, planned, node_modules(model.graph), 3)
    made = sum(node.op_type in ("MatMulIntegerToFloat", "QLinearMatMul") for node in graph)
    assert truth.int8 == made
    assert truth.int8 + len(truth.fallbacks) == len(planned) == 21


def test_a_model_whose_attention_does_not_fit_runs_with_past_and_present(onnx_file, tmp_path, tiny_llama_folder):
    backend, source = OnnxRuntimeBackend(), read_portable(onnx_file)
    folder = tmp_path / "folder"
    folder.mkdir()
    compiled = backend.build(source, folder, BuildOptions(without=("group-query-attention", "int8-embedding")))
    assert compiled.target["cache"] == "past/present"
    assert "group-query-attention: switched off" in compiled.target["skipped"]
    assert compiled.truth.int8_coverage == 1.0
    runner = OnnxRunner(folder / MODEL_NAME, Assets(tiny_llama_folder, PREFIX_IDS), SessionSettings(threads=1), "all")
    ids = random_ids(1, 8)
    expected, _ = open_onnx_runner(onnx_file).prefill(ids)
    found, cache = runner.prefill(ids[:, :7])
    last, _ = runner.decode(ids[:, 7:], cache)
    error = np.concatenate([found, last], axis=1) - expected
    assert error.std() < 0.05 * expected.std()


def test_another_onnxruntime_than_the_builds_is_said(built, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    manifest = built.manifest.model_copy(update={"versions": {**built.manifest.versions, "onnxruntime": "1.0.0"}})
    manifest.save(copy / MANIFEST_NAME)
    with open_subject(copy, threads=1):
        assert "was built and tried with onnxruntime 1.0.0" in capsys.readouterr().err.replace("\n", " ")
    with open_subject(built.path, threads=1):
        assert "built and tried" not in capsys.readouterr().err
