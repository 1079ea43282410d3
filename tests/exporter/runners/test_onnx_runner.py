"""The portable file as it is, and how both runners read the machine."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import BackendError, SpikeExportError
from spikeexport.runners.assets import Assets
from spikeexport.runners.cpu import cpu_model, physical_cores, u8s8_saturates
from spikeexport.runners.onnx_runner import OnnxRunner, assets_folder, open_onnx_runner
from spikeexport.runners.ort_session import SessionSettings, open_session
from spikeexport.runners.torch_runner import TorchRunner

from tests.constant_plan import write_portable
from tests.lowered_models import open_pair, random_ids


@pytest.fixture(scope="module")
def runner(tiny_llama_folder, tmp_path_factory) -> OnnxRunner:
    return open_pair(tiny_llama_folder, tmp_path_factory.mktemp("onnx"), quantised=False).portable


def test_unquantised_file_equals_pytorch(runner, tiny_llama_folder):
    torch_runner = TorchRunner(open_checkpoint(tiny_llama_folder))
    ids = random_ids(2, 10)
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    expected, expected_cache = torch_runner.prefill(ids, mask)
    found, cache = runner.prefill(ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=1e-4, rtol=0)
    assert (runner.bos_id, runner.eos_ids) == (torch_runner.bos_id, torch_runner.eos_ids)
    for seed in (1, 2):
        token = random_ids(2, 1, seed=seed)
        expected, expected_cache = torch_runner.decode(token, expected_cache)
        found, cache = runner.decode(token, cache)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_last_only_is_one_row(runner):
    ids = random_ids(1, 7)
    np.testing.assert_array_equal(runner.prefill(ids, last_only=True)[0], runner.prefill(ids)[0][:, -1:])


def test_bf16_runs_in_fp32_with_its_own_weights(tiny_llama_folder, tmp_path):
    file = write_portable(tiny_llama_folder, tmp_path / "model.onnx", dtype="bf16", quantised=False)
    shutil.copytree(tiny_llama_folder, tmp_path / "model.assets")
    torch_runner = TorchRunner(open_checkpoint(tiny_llama_folder))
    ids = random_ids(1, 10)
    expected, _ = torch_runner.prefill(ids)
    with open_onnx_runner(file) as runner:
        found, _ = runner.prefill(ids)
    # BF16 keeps 8 bits of each weight.
    assert 1e-4 * np.abs(expected).max() < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_missing_assets_are_named(tmp_path):
    with pytest.raises(SpikeExportError, match=r"model\.assets is missing"):
        assets_folder(tmp_path / "model.onnx")


def test_a_broken_tokenizer_is_one_sentence(tiny_llama_folder, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama_folder / "config.json").read_text())
    with pytest.raises(SpikeExportError, match="no usable tokenizer"):
        _ = Assets(tmp_path).tokenizer


def test_a_file_that_is_no_model_is_refused(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(BackendError, match="cannot load"):
        open_session(broken, SessionSettings(), "all")


def test_the_machine_is_described():
    assert physical_cores() >= 1
    assert cpu_model()
    assert isinstance(u8s8_saturates(), bool)


def test_cores_and_saturation_come_from_cpuinfo(tmp_path, monkeypatch):
    text = "".join(
        f"processor : {cpu}\nmodel name : Old CPU\nphysical id : 0\ncore id : {cpu // 2}\nflags : sse avx2\n\n"
        for cpu in range(4)
    )
    (tmp_path / "cpuinfo").write_text(text)
    from spikeexport.runners import cpu

    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu, "_QUOTA", tmp_path / "absent")
    monkeypatch.setattr(cpu, "_allowed_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert (cpu.physical_cores(), cpu.cpu_model(), cpu.u8s8_saturates()) == (2, "Old CPU", True)
    (tmp_path / "quota").write_text("100000 100000")
    monkeypatch.setattr(cpu, "_QUOTA", tmp_path / "quota")
    assert cpu.physical_cores() == 1
