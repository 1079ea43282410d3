import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spikeexport.calibration.checkpoint.safetensors_header import read_safetensors_header
from spikeexport.calibration.foundation.errors import CheckpointError


def _file(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def _tensor(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_whole_file(tmp_path):
    file = _file(tmp_path / "m.safetensors", {"__metadata__": {"format": "pt"}, "a": _tensor()}, bytes(24))
    entry = read_safetensors_header(file)["a"]
    assert (entry.dtype, entry.shape, entry.size_bytes) == ("F32", (2, 3), 24)
    assert entry.start + entry.size_bytes == file.stat().st_size


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        ({"a": _tensor()}, bytes(20), None, r"tensor a ends at byte \d+, the file at \d+"),
        ({"a": _tensor()}, bytes(30), None, r"its tensors end at byte \d+, the file at \d+"),
        ({"a": _tensor(offsets=(0, 20))}, bytes(20), None, r"tensor a \[2, 3\] F32 needs 24 bytes, its offsets say 20"),
        ({"a": _tensor(offsets=(-24, 0))}, b"", None, "tensor a"),
        ({"a": _tensor(shape=(-2, -3))}, bytes(24), None, "tensor a"),
        ({"a": _tensor(dtype="F5")}, bytes(24), None, "tensor a has dtype F5, expected one of F64, F32"),
        ({"a": _tensor(dtype="F8_E4M3")}, bytes(24), None, "dtype F8_E4M3.*give the checkpoint in BF16, FP16 or FP32"),
        ({"a": {"dtype": "F32"}}, bytes(24), None, "entry of tensor a is malformed"),
        ({"a": 3}, bytes(24), None, "entry of tensor a is malformed"),
        (b"{nonsense", b"", None, "header is not JSON"),
        (b"\xff\xfe\xff", b"", None, "header is not JSON"),
        (b"[1]", b"", None, "not a JSON object"),
        ({"a": _tensor()}, bytes(24), 10**12, "claims 1000000000000 bytes"),
        ({"a": _tensor()}, bytes(24), 2**63, "header claims"),
    ],
)
def test_damaged_file(tmp_path, header, data, length, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_safetensors_header(_file(tmp_path / "m.safetensors", header, data, length))
    assert "m.safetensors" in str(caught.value)


@pytest.mark.parametrize("size", [0, 5, 8, 100])
def test_cut_file(tmp_path, tiny_llama_folder, size):
    file = tmp_path / "cut.safetensors"
    file.write_bytes((tiny_llama_folder / "model.safetensors").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is truncated or corrupt"):
        read_safetensors_header(file)


def test_every_cut_is_noticed(tmp_path, tiny_llama_folder):
    whole = (tiny_llama_folder / "model.safetensors").read_bytes()
    file = tmp_path / "cut.safetensors"

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(whole) - 1))
    def check(size):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_safetensors_header(file)

    check()
