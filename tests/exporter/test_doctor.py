"""`doctor`: what is installed, what works here, what is missing; a broken library is a line of the answer."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from spikeexport.backends.registry import BACKENDS
from spikeexport.cli.machine_tables import doctor_table
from spikeexport.doctor import _conflicts, doctor, installed_version


@pytest.fixture(scope="module")
def answer():
    return doctor()


def test_answer_is_plain_json_with_every_backend(answer):
    assert json.loads(json.dumps(answer)) == answer
    assert set(answer["backends"]) == set(BACKENDS)
    for state in answer["backends"].values():
        assert state["builds"] == (state["why_not_build"] is None)
        assert state["runs"] == (state["why_not_run"] is None)


def test_rtx_builds_here_and_its_version_is_shown(answer):
    assert answer["backends"]["tensorrt-rtx"]["builds"]
    assert answer["versions"]["tensorrt-rtx"] == installed_version("tensorrt-rtx")
    assert answer["libraries"]["tensorrt_rtx"]["done"] == ["import", "builder", "runtime"]


def test_nothing_that_is_missing_is_called_present(answer):
    for name, command in answer["missing"].items():
        assert answer["versions"].get(name) is None
        assert command


def test_gpu_and_broken_libraries(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("import os\nos.abort()\n")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor()
    assert found["libraries"]["onnxruntime"]["why"].startswith("import onnxruntime crashed (SIGABRT)")
    assert found["backends"]["onnxruntime"]["why_not_build"].startswith("the backend onnxruntime crashed (SIGABRT)")
    assert "libnvinfer.so.10" in found["libraries"]["tensorrt"]["why"]
    assert found["gpus"] == {"found": [], "why_none": "no NVIDIA driver (nvidia-smi is not on the PATH)"}
    assert not found["backends"]["tensorrt-rtx"]["runs"]
    assert "GPU" in found["missing"]


def test_table_has_a_line_for_a_crash_a_gpu_and_a_conflict(answer):
    gpu = {"name": "GPU X", "compute_capability": "8.9", "driver": "580.1", "memory_mib": 8188}
    libraries = {**answer["libraries"], "onnxruntime": {"why": "import onnxruntime crashed (SIGSEGV): "}}
    versions = {**answer["versions"], "onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}
    console = Console(width=160)
    with console.capture() as captured:
        changed = {"libraries": libraries, "gpus": {"found": [gpu]}, "conflicts": _conflicts(versions)}
        console.print(doctor_table({**answer, **changed}))
    text = captured.get()
    assert "import onnxruntime crashed (SIGSEGV)" in text
    assert "GPU X, compute capability 8.9, driver 580.1, 8188 MiB" in text
    assert "conflict: onnxruntime and onnxruntime-gpu" in text
    assert answer["conflicts"] == []


def test_distribution_that_is_not_there():
    assert installed_version("spikeexport-does-not-exist") is None
