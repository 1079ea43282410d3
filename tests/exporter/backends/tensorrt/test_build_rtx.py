"""Real ahead-of-time builds of tiny models: what became INT8, what fell back and why, and every refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from spikeexport.backends.base import BuildOptions
from spikeexport.backends.manifest import load_manifest
from spikeexport.backends.registry import open_backend
from spikeexport.backends.tensorrt.request import BuildRequest
from spikeexport.backends.tensorrt.subprocess_build import build_in_subprocess
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import BackendError, CheckFailed, UsageError
from spikeexport.calibration.records.plan import Exclusion
from spikeexport.graphs.passes.quantize_kv_cache import QuantizeKvCache
from spikeexport.graphs.reading import read_portable
from spikeexport.graphs.saving import save_model
from spikeexport.inspect import inspect
from spikeexport.runners import open_subject

from tests.constant_plan import portable_graph, write_portable
from tests.graphs.tensorrt import faults
from tests.tiny_models import tiny_family

DOWN = "model.layers.1.mlp.down_proj"
RTX = {"backend": "tensorrt-rtx", "max_batch": 2, "max_seq": 64}


@pytest.fixture(scope="module")
def onnx(tiny_llama_folder, tmp_path_factory) -> Path:
    return write_portable(tiny_llama_folder, tmp_path_factory.mktemp("portable") / "tiny.onnx")


@pytest.fixture(scope="module")
def built(onnx, tmp_path_factory):
    return build(onnx, tmp_path_factory.mktemp("built") / "tiny.rtx", compute_capabilities=("8.6", "8.9"), **RTX)


def _faulty(folder: Path, path: Path, fault, *arguments) -> Path:
    model = portable_graph(folder)
    fault(model, *arguments)
    save_model(model, path)
    return path


def test_every_planned_linear_becomes_int8_and_every_attention_one_kernel(built):
    truth = built.manifest.truth
    assert len(truth.planned) == 21
    assert truth.int8_coverage == 1.0
    assert truth.fallbacks == ()
    assert (truth.attention_fused, truth.attention_layers) == (3, 3)
    assert sorted(linear for product in truth.merged.values() for linear in product) == sorted(truth.planned)


def test_linears_with_one_input_merge(built):
    merged = [sorted(name.rsplit(".", 1)[1] for name in linears) for linears in built.manifest.truth.merged.values()]
    assert merged.count(["k_proj", "q_proj", "v_proj"]) == 3
    assert merged.count(["gate_proj", "up_proj"]) == 3
    assert len(merged) == 12


def test_manifest_says_where_it_came_from(built, onnx):
    manifest = load_manifest(built.path, "tensorrt-rtx")
    assert manifest == built.manifest
    assert manifest.target == {"compute_capabilities": ["8.6", "8.9"], "max_batch": 2, "max_seq": 64}
    assert manifest.versions["tensorrt_rtx"].startswith("1.7.1")
    assert {file.name for file in manifest.files} == {"model.engine", "layers.txt"}
    assert manifest.size_bytes == sum((built.path / file.name).stat().st_size for file in manifest.files)


def test_engine_does_not_run_without_a_gpu_and_says_so(built, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"runs on an NVIDIA GPU of compute capability 8\.6 or 8\.9.*no NVIDIA"):
        open_subject(str(built.path))


def test_cut_engine_is_refused(built, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    (copy / "model.engine").write_bytes(b"short")
    with pytest.raises(BackendError, match=r"model\.engine has 5 bytes"):
        load_manifest(copy)
    (copy / "model.engine").unlink()
    with pytest.raises(BackendError, match=r"model\.engine is missing"):
        load_manifest(copy)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.weight_along_inputs, "along the input channels"),
        (faults.float_activation, "the input is not quantised"),
        (faults.float_weight, "the weight is not quantised"),
        (faults.activation_per_channel, "per channel"),
    ],
)
def test_planted_pattern_falls_back_and_is_named_with_the_cure(tiny_llama_folder, tmp_path, capsys, fault, words):
    path = _faulty(tiny_llama_folder, tmp_path / "faulty.onnx", fault, DOWN)
    assert any(item["modules"] == [DOWN] and words in item["why"] for item in inspect(path)["findings"])
    truth = build(path, min_int8_coverage=0.9, **RTX).manifest.truth
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"lint: fallback: {DOWN}/MatMul: " in said
    assert words in said
    assert [fallback.name for fallback in truth.fallbacks] == [DOWN]
    assert words in truth.fallbacks[0].why
    assert "no INT8 product" in truth.fallbacks[0].why
    assert truth.int8_coverage == pytest.approx(20 / 21)


def test_coverage_below_the_threshold_fails_with_3_and_leaves_nothing(tiny_llama_folder, tmp_path):
    path = _faulty(tiny_llama_folder, tmp_path / "faulty.onnx", faults.weight_along_inputs, DOWN)
    with pytest.raises(CheckFailed, match=rf"20 of 21 planned linears.*{DOWN}") as failure:
        build(path, min_int8_coverage=0.97, **RTX)
    assert failure.value.exit_code == 3
    assert {file.name for file in tmp_path.iterdir()} == {"faulty.onnx", "faulty.onnx.data"}


def test_parser_names_the_node_that_it_refuses(tiny_llama_folder, tmp_path):
    path = _faulty(tiny_llama_folder, tmp_path / "faulty.onnx", faults.zero_point, DOWN, np.array(3, np.int8))
    with pytest.raises(BackendError, match=rf"QuantizeLinear node {DOWN}/input/QuantizeLinear: .*zero point") as error:
        build(path, **RTX)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "faulty.tensorrt-rtx").exists()


def test_scale_of_zero_is_refused(tiny_llama_folder, tmp_path):
    path = _faulty(tiny_llama_folder, tmp_path / "faulty.onnx", faults.input_scale, DOWN, np.array(0, np.float32))
    with pytest.raises(BackendError, match=DOWN):
        build(path, **RTX)


def test_excluded_linears_are_not_planned(tiny_llama_folder, tmp_path):
    path = write_portable(tiny_llama_folder, tmp_path / "excluded.onnx", excluded=(DOWN,))
    manifest = build(path, **RTX).manifest
    assert manifest.excluded == (DOWN,)
    assert (manifest.linears, len(manifest.truth.planned)) == (21, 20)
    assert manifest.truth.int8_coverage == 1.0


def test_internal_check_of_the_compiler_is_explained_by_the_lint(tiny_llama_folder, tmp_path):
    path = _faulty(tiny_llama_folder, tmp_path / "faulty.onnx", faults.unlike_scales, DOWN)
    with pytest.raises(BackendError, match=rf"Known to be refused: {DOWN}/MatMul: .*; give both scales one type"):
        build(path, **RTX)


def test_int8_has_no_more_kernels_per_layer_than_half_precision(tiny_llama_folder, tmp_path, built):
    plain = write_portable(tiny_llama_folder, tmp_path / "plain.onnx", quantised=False)
    kernels = build(plain, **RTX).manifest.truth.kernels
    for profile in ("prefill_per_layer", "decode_per_layer"):
        assert built.manifest.truth.kernels[profile] <= kernels[profile]


def test_unquantised_model_has_nothing_to_cover(tiny_llama_folder, tmp_path):
    truth = build(write_portable(tiny_llama_folder, tmp_path / "plain.onnx", quantised=False), **RTX).manifest.truth
    assert truth.planned == ()
    assert truth.int8_coverage == 1.0
    assert truth.attention_fused == 3


@pytest.mark.parametrize(("dtype", "fused"), [("bf16", 3), ("fp32", 0)])
def test_other_types_build_too_and_unfused_attention_is_said(tiny_llama_folder, tmp_path, dtype, fused):
    truth = build(write_portable(tiny_llama_folder, tmp_path / "m.onnx", dtype=dtype), **RTX).manifest.truth
    assert truth.int8_coverage == 1.0
    assert (truth.attention_fused, truth.attention_layers) == (fused, 3)
    assert len(truth.attention_unfused) == 3 - fused
    assert all("in FP32 (export with --dtype" in truth.attention_why[name] for name in truth.attention_unfused)


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma2", "gemma3_text", "mixtral", "olmo2", "cohere"])
def test_every_linear_of_unlike_families_becomes_int8(family, tmp_path):
    onnx = write_portable(tiny_family(family, tmp_path / family), tmp_path / "m.onnx")
    truth = build(onnx, **RTX).manifest.truth
    # Phi-3 keeps q, k and v in one linear, and gate and up.
    assert len(truth.planned) >= 12
    assert truth.int8_coverage == 1.0
    assert truth.attention_layers == 3
    assert truth.attention_fused == (0 if family == "gemma2" else 3)
    assert [why.partition(",")[0] for why in set(truth.attention_why.values())] == (
        ["its scores are capped at 50"] if family == "gemma2" else []
    )


def test_int8_cache_costs_no_kernel_and_keeps_attention_whole(tiny_llama_folder, tmp_path, built):
    model = portable_graph(tiny_llama_folder)
    QuantizeKvCache({f"kv.{i}.{kind}": np.full((2, 16), 0.02) for i in range(3) for kind in ("key", "value")})(model)
    save_model(model, tmp_path / "kv.onnx")
    assert inspect(tmp_path / "kv.onnx")["findings"] == []
    manifest = build(tmp_path / "kv.onnx", **RTX).manifest
    assert (manifest.truth.int8_coverage, manifest.truth.attention_fused) == (1.0, 3)
    assert manifest.truth.kernels == built.manifest.truth.kernels
    caches = [tensor for tensor in manifest.signature.inputs if tensor.name.startswith("past_key_values.")]
    assert {tensor.dtype for tensor in caches} == {"int8"}


def test_unknown_target_is_a_usage_error_with_the_choice(onnx, tmp_path):
    with pytest.raises(UsageError, match=r"--compute-capability 9\.0 .*7\.5, 8\.0, 8\.6, 8\.9, 12\.0"):
        build(onnx, tmp_path / "out", compute_capabilities=("9.0",), **RTX)


def test_fp8_is_refused_for_gpus_without_it(tiny_llama_folder, tmp_path):
    portable = read_portable(write_portable(tiny_llama_folder, tmp_path / "m.onnx", excluded=(DOWN,)))
    fp8 = Exclusion(linear=DOWN, precision="fp8", why="chosen by the test")
    portable = replace(portable, plan=portable.plan.model_copy(update={"excluded": (fp8,)}))
    with pytest.raises(UsageError, match=rf"--compute-capability 8\.0 has no FP8, which {DOWN} is stored in"):
        open_backend("tensorrt-rtx").build(portable, tmp_path, BuildOptions(compute_capabilities=("8.0", "8.9")))


def test_several_targets_make_one_engine_that_is_larger_than_each(onnx, tmp_path):
    sizes = {
        targets: build(onnx, tmp_path / "-".join(targets), compute_capabilities=targets, **RTX).manifest.files[1]
        for targets in (("8.0",), ("8.9",), ("8.0", "8.9"))
    }
    assert {file.name for file in sizes.values()} == {"model.engine"}
    assert sizes["8.0", "8.9"].size_bytes > max(sizes["8.0",].size_bytes, sizes["8.9",].size_bytes)


@pytest.mark.parametrize("targets", [("89",), ("8.9", "8.9"), ("sm89",)])
def test_targets_are_versions_and_each_is_named_once(onnx, tmp_path, targets):
    with pytest.raises(UsageError, match="--compute-capability"):
        build(onnx, tmp_path / "out", compute_capabilities=targets, **RTX)


def test_max_seq_above_the_model_is_a_usage_error(onnx, tmp_path):
    with pytest.raises(UsageError, match="--max-seq is 4096, the model has 1024 positions"):
        build(onnx, tmp_path / "out", backend="tensorrt-rtx", max_seq=4096)


def test_timing_cache_is_not_used_by_rtx(onnx, tmp_path, capsys):
    build(onnx, tmp_path / "out", timing_cache=tmp_path / "timings", **RTX)
    assert "keeps no timings" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "timings").exists()


def test_native_crash_is_an_error_message(onnx, tmp_path, monkeypatch):
    (tmp_path / "tensorrt_rtx.py").write_text(
        "import os, sys\n__version__ = '1.7.1.116'\nclass ILogger: pass\n"
        "def Builder(log):\n    print('out of luck', file=sys.stderr, flush=True)\n    os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = BuildRequest(
        backend="tensorrt-rtx", onnx=str(onnx), folder=str(tmp_path), targets=("8.9",), max_batch=1, max_seq=8
    )
    with pytest.raises(
        BackendError, match=r"crashed \(SIGABRT\) while building tiny.onnx; its last words: out of luck"
    ):
        build_in_subprocess(request)


def test_report_is_what_build_prints_with_json(built):
    report = json.loads(json.dumps(built.to_json()))
    assert report["backend"] == "tensorrt-rtx"
    assert report["int8"] == report["linears"] == 21
    assert report["int8_coverage"] == 1.0
    assert report["attention_fused"] == 3
    assert report["fallbacks"] == []
    assert report["size_bytes"] > 0


@pytest.mark.slow
def test_real_model_is_int8_throughout(smollm2_gguf, tmp_path):
    path = write_portable(smollm2_gguf, tmp_path / "smollm2.onnx")
    truth = build(path, backend="tensorrt-rtx", compute_capabilities=("8.9",)).manifest.truth
    assert len(truth.planned) == 210
    assert truth.int8_coverage == 1.0
    assert (truth.attention_fused, truth.attention_layers) == (30, 30)
    assert len(truth.merged) == 120
    assert truth.kernels["prefill_per_layer"] == truth.kernels["decode_per_layer"] == 10
