"""Telling what a SUBJECT is."""

import pytest
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.runners.subject import open_subject, subject_kind


def test_kinds(tmp_path):
    (tmp_path / "x.onnx").touch()
    built = tmp_path / "built"
    built.mkdir()
    (built / "engine.json").touch()
    assert subject_kind(tmp_path / "x.onnx") == "onnx"
    assert subject_kind(built) == subject_kind(built / "engine.json") == "built"
    assert subject_kind("owner/model") == subject_kind("model.gguf") == subject_kind(tmp_path) == "model"


def test_a_missing_onnx_is_named(tmp_path):
    with pytest.raises(SpikeExportError, match=r"gone\.onnx does not exist"):
        open_subject(tmp_path / "gone.onnx")
