"""`doctor`: what is installed, what works here, what is missing; a broken library is a line of the answer."""

from __future__ import annotations

import json

import pytest
from spikeexport.backends.registry import BACKENDS
from spikeexport.doctor import doctor, installed_version


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
    assert "libnvinfer.so.10" in found["libraries"]["tensorrt"]["why"]
    assert found["gpus"] == {"found": [], "why_none": "no NVIDIA driver (nvidia-smi is not on the PATH)"}
    assert not found["backends"]["tensorrt-rtx"]["runs"]
    assert "GPU" in found["missing"]


def test_distribution_that_is_not_there():
    assert installed_version("spikeexport-does-not-exist") is None
