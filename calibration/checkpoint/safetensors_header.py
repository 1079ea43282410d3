"""The header of a .safetensors file, checked against the file's size before anything is mapped."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeexport.calibration.foundation.errors import CheckpointError, one_line

MAX_HEADER_BYTES = 100_000_000
"""Longest header that the safetensors format allows."""

_LENGTH_BYTES = 8

BITS_PER_VALUE = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}
"""Width of each safetensors dtype that can be read here; 8-bit floats, being quantised already, are not among them."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: The checkpoint's tensor name.
        file: The .safetensors file.
        dtype: The format's dtype name, for example "BF16".
        shape: Dimensions.
        start: First byte of the tensor in the file.
        size_bytes: Number of bytes.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def read_safetensors_header(file: Path) -> dict[str, TensorEntry]:
    """Reads the header of `file` and checks that every tensor lies inside the file.

    Format: 8 bytes little-endian header length, JSON header, data (https://github.com/huggingface/safetensors).

    Raises:
        CheckpointError: The file is truncated or corrupt; names the file and, where it can, the tensor.
    """
    size = file.stat().st_size
    if size < _LENGTH_BYTES:
        raise _corrupt(file, f"it has {size} bytes, fewer than the {_LENGTH_BYTES} of the header length")
    with open(file, "rb") as stream:
        header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if header_bytes > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise _corrupt(file, f"its header claims {header_bytes} bytes, the file has {size}")
        header = _parse_header(file, stream.read(header_bytes))
    data_start = _LENGTH_BYTES + header_bytes
    entries = {name: _entry(file, name, info, data_start, size) for name, info in header.items()}
    end = max((entry.start + entry.size_bytes for entry in entries.values()), default=data_start)
    if end != size:
        raise _corrupt(file, f"its tensors end at byte {end}, the file at {size}")
    return entries


def _parse_header(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _corrupt(file, f"its header is not JSON ({one_line(error, 80)})") from error
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _entry(file: Path, name: str, info: Any, data_start: int, size: int) -> TensorEntry:
    try:
        dtype, shape = str(info["dtype"]), tuple(int(extent) for extent in info["shape"])
        begin, end = (int(offset) for offset in info["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(file, f"the header's entry of tensor {name} is malformed") from error
    if dtype not in BITS_PER_VALUE:
        raise CheckpointError(
            f"{file}: tensor {name} has dtype {dtype}, expected one of {', '.join(BITS_PER_VALUE)}: give the "
            "checkpoint in BF16, FP16 or FP32."
        )
    expected = math.prod(shape) * BITS_PER_VALUE[dtype] // 8
    if min((*shape, begin), default=0) < 0 or end - begin != expected:
        raise _corrupt(
            file, f"tensor {name} {list(shape)} {dtype} needs {expected} bytes, its offsets say {end - begin}"
        )
    if data_start + end > size:
        raise _corrupt(file, f"tensor {name} ends at byte {data_start + end}, the file at {size}")
    return TensorEntry(name, file, dtype, shape, data_start + begin, expected)


def _corrupt(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is truncated or corrupt: {what}; download or copy it again.")
