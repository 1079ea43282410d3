import errno

import numpy as np
import pytest
from spikeexport.calibration.foundation import files
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.files import sha256_file, staged_outputs, write_text


def test_all_targets_appear_together(tmp_path):
    data, graph = tmp_path / "out" / "m.data", tmp_path / "out" / "m.onnx"
    with staged_outputs(data, graph) as staging:
        (staging / data.name).write_bytes(b"weights")
        assert not data.exists()
        (staging / graph.name).write_bytes(b"graph")
    assert (data.read_bytes(), graph.read_bytes()) == (b"weights", b"graph")
    assert sorted(path.name for path in tmp_path.joinpath("out").iterdir()) == ["m.data", "m.onnx"]


def test_a_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "plan.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def _fail_half_way(target):
    with staged_outputs(target) as staging:
        (staging / target.name).write_text("new")
        raise RuntimeError("half way")


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    target = tmp_path / "assets"
    for content in ("old", "new"):
        with staged_outputs(target) as staging:
            (staging / target.name).mkdir()
            (staging / target.name / content).touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritten_target_is_an_error(tmp_path):
    with pytest.raises(SpikeExportError, match=r"m\.onnx was not written"), staged_outputs(tmp_path / "m.onnx"):
        pass


def test_a_full_disk_is_said(tmp_path):
    target = tmp_path / "m.data"
    with pytest.raises(SpikeExportError, match="No space left while writing"), staged_outputs(target):  # noqa: SIM117
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"weights")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_where_numpy_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_free_bytes", lambda target: 4096)
    with pytest.raises(SpikeExportError, match="No space left while writing"), staged_outputs(tmp_path / "m.data"):  # noqa: SIM117
        with open("/dev/full", "wb") as stream:
            np.zeros(1 << 20).tofile(stream)


def test_other_errors_name_the_file(tmp_path):
    with (
        pytest.raises(SpikeExportError, match=r"Cannot write .*m\.data: .*check the folder"),
        staged_outputs(tmp_path / "m.data"),
    ):
        raise OSError(errno.EIO, "Input/output error")


def test_sha256_is_of_the_content(tmp_path):
    write_text(tmp_path / "abc", "abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")
