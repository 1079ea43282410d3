"""`build` itself: what it accepts, what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import BackendError, GraphError, UsageError

from tests.constant_plan import write_portable

RTX = {"backend": "tensorrt-rtx", "max_batch": 1, "max_seq": 32}


@pytest.fixture
def onnx(tiny_llama_folder, tmp_path) -> Path:
    return write_portable(tiny_llama_folder, tmp_path / "tiny.onnx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch": 0}, "--max-batch is 0"),
        ({"max_seq": 1}, "--max-seq is 1"),
        ({"min_int8_coverage": 1.5}, "--min-int8-coverage is 1.5"),
        ({"workspace_bytes": 10}, "workspace of 10 bytes"),
        ({"backend": "tensorflow"}, "choose one of auto, onnxruntime, tensorrt, tensorrt-rtx"),
    ],
)
def test_bad_options_are_usage_errors_before_anything_runs(tmp_path, options, words):
    with pytest.raises(UsageError, match=words) as error:
        build(tmp_path / "absent.onnx", **{"backend": "tensorrt-rtx", **options})
    assert error.value.exit_code == 2


def test_missing_backend_says_what_to_install_and_leaves_nothing(onnx, tmp_path, monkeypatch):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text("raise ImportError('no libraries')")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    with pytest.raises(BackendError, match="TensorRT") as error:
        build(onnx, tmp_path / "out", backend="tensorrt")
    assert error.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_missing_and_damaged_files(onnx, tmp_path):
    with pytest.raises(GraphError, match=r"absent\.onnx does not exist"):
        build(tmp_path / "absent.onnx", **RTX)
    data = tmp_path / "tiny.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(GraphError, match="is cut"):
        build(onnx, **RTX)
    data.unlink()
    with pytest.raises(GraphError, match="is missing"):
        build(onnx, **RTX)
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.onnx"}


def test_model_is_not_exported_over_an_existing_file(tiny_llama_folder, tmp_path):
    existing = tmp_path / f"{tiny_llama_folder.name}.onnx"
    existing.write_bytes(b"mine")
    with pytest.raises(UsageError, match="which exists: build that file"):
        build(tiny_llama_folder, tmp_path / "out", **RTX)
    assert existing.read_bytes() == b"mine"


@pytest.mark.slow
def test_model_goes_through_the_earlier_stages(tiny_llama_folder, tmp_path):
    result = build(tiny_llama_folder, tmp_path / "out", **RTX)
    assert (tmp_path / f"{tiny_llama_folder.name}.onnx").is_file()
    assert result.manifest.truth.int8_coverage == 1.0
    assert (result.path / "tokenizer.json").is_file()


def test_folder_of_something_else_is_not_replaced(onnx, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="is no built folder"):
        build(onnx, folder, **RTX)
    assert (folder / "cat.jpg").read_bytes() == b"cat"


def test_result_has_its_default_name_replaces_an_older_one_and_holds_the_assets(onnx, tmp_path):
    assets = tmp_path / "tiny.assets"
    assets.mkdir()
    (assets / "tokenizer.json").write_text("{}", encoding="utf-8")
    first = build(onnx, **RTX)
    assert first.path == tmp_path / "tiny.tensorrt-rtx"
    (first.path / "leftover").write_text("old", encoding="utf-8")
    second = build(onnx, **RTX)
    names = {file.name for file in second.path.iterdir()}
    assert names == {"engine.json", "model.engine", "layers.txt", "tokenizer.json"}
    assert {file.name for file in second.manifest.files} == names - {"engine.json"}
    assert first.manifest == second.manifest
