"""What is asked of a machine: its GPUs, its libraries (in subprocesses that may crash), whether an engine fits it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from spikeexport.backends.manifest import EngineManifest, EngineTruth
from spikeexport.backends.registry import open_backend
from spikeexport.backends.tensorrt.flavor import TENSORRT, TENSORRT_RTX
from spikeexport.backends.tensorrt.gpus import Gpu, GpuAnswer, ask_gpus, read_gpu_table
from spikeexport.backends.tensorrt.probe import Probe, describe_exit, probe, read_probe
from spikeexport.backends.tensorrt.runnable import require_gpu, require_version
from spikeexport.calibration.foundation.errors import BackendError

TABLE = "NVIDIA L4, 8.9, 570.86.10, 23034\nNVIDIA Thor, 11.0, 580.00, [N/A]\n"


def _program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_gpu_table():
    assert read_gpu_table(TABLE) == (
        Gpu("NVIDIA L4", "8.9", "570.86.10", 23034),
        Gpu("NVIDIA Thor", "11.0", "580.00", 0),
    )


def test_gpus_are_asked_through_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_gpus().why_none == "no NVIDIA driver (nvidia-smi is not on the PATH)"
    _program(tmp_path, "nvidia-smi", "echo 'NVIDIA L4, 8.9, 570.86.10, 23034'")
    assert ask_gpus() == GpuAnswer((Gpu("NVIDIA L4", "8.9", "570.86.10", 23034),), None)
    _program(tmp_path, "nvidia-smi", "echo 'Driver/library version mismatch' >&2; exit 18")
    assert ask_gpus().why_none == "nvidia-smi failed (Driver/library version mismatch)"


def test_library_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe(TENSORRT)
    assert found.version is None
    assert not found.can_build
    assert "libnvinfer.so.10" in found.why
    assert TENSORRT.install in found.why


def test_library_that_crashes_is_an_answer(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text(
        "import os\n__version__ = '10.16.1'\nclass ILogger: pass\ndef Builder(log): os.abort()\nRuntime = Builder\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe(TENSORRT)
    assert found.version == "10.16.1"
    assert found.done == ("import",)
    assert "crashed (SIGABRT) at the step 'builder'" in found.why


def test_library_of_an_unknown_version_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "TensorRT 8.6.1 is installed" in probe(TENSORRT).why


def test_rtx_builds_without_a_gpu():
    found = probe(TENSORRT_RTX)
    assert found.why is None
    assert found.done == ("import", "builder", "runtime")
    assert TENSORRT_RTX.accepts(found.version)
    assert open_backend("tensorrt-rtx").why_unavailable() is None


def test_tensorrt_says_what_is_missing_and_the_command(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libraries')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    why = open_backend("tensorrt").why_unavailable()
    assert "no NVIDIA driver" in why
    assert "pip install 'spikeexport[tensorrt]'" in why


def test_versions_that_the_drivers_know():
    assert TENSORRT.accepts("10.16.1.11")
    assert TENSORRT.accepts("11.4.0.106")
    assert not TENSORRT.accepts("9.3.0")
    assert not TENSORRT.accepts("12.0")
    assert not TENSORRT_RTX.accepts("1.7.10")


def test_ends_of_processes():
    assert describe_exit(-11) == "crashed (SIGSEGV)"
    assert describe_exit(3) == "ended with code 3"
    assert "SIGSEGV" in read_probe(TENSORRT, '{"step": "import", "version": "11.4"}\n', "", -11).why


def _manifest(**changes) -> EngineManifest:
    values = {
        "backend": "tensorrt-rtx",
        "model": "m",
        "plan_sha256": None,
        "onnx_sha256": "0" * 64,
        "linears": 0,
        "excluded": (),
        "prefix": None,
        "files": (),
        "truth": EngineTruth(planned=()),
        "target": {"compute_capabilities": ["8.9"], "max_batch": 4, "max_seq": 64},
        "versions": {"tensorrt_rtx": "1.7.1.116"},
    }
    return EngineManifest(**{**values, **changes})


def test_engine_of_another_version_is_refused():
    here = Probe("1.7.1.116", ("import", "builder", "runtime"), None)
    require_version(TENSORRT_RTX, Path("e"), _manifest(), here)
    with pytest.raises(BackendError, match=r"built with TensorRT-RTX 1\.6\.0, 1\.7\.1\.116 is installed"):
        require_version(TENSORRT_RTX, Path("e"), _manifest(versions={"tensorrt_rtx": "1.6.0"}), here)
    with pytest.raises(BackendError, match="broken"):
        require_version(TENSORRT_RTX, Path("e"), _manifest(), Probe("1.7.1.116", ("import",), "it is broken"))


def test_engine_for_another_gpu_is_refused():
    ampere = GpuAnswer((Gpu("NVIDIA A10", "8.6", "570", 24000),), None)
    with pytest.raises(BackendError, match=r"built for compute capability 8\.9, this GPU \(NVIDIA A10\) has 8\.6"):
        require_gpu(TENSORRT_RTX, Path("e"), _manifest(), ampere)
    both = {"compute_capabilities": ["8.6", "8.9"], "max_batch": 4, "max_seq": 64}
    assert require_gpu(TENSORRT_RTX, Path("e"), _manifest(target=both), ampere).name == "NVIDIA A10"
    with pytest.raises(BackendError, match="there is no driver"):
        require_gpu(TENSORRT_RTX, Path("e"), _manifest(), GpuAnswer((), "no driver"))
