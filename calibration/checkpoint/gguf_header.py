"""The header of a .gguf file, checked against the file's size before anything else reads it.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Strings and arrays carry 64-bit lengths; a corrupt
one is refused here instead of sending a reader through it for hours.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeexport.calibration.foundation.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 8
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies in a .gguf file.

    Attributes:
        name: GGUF's tensor name, for example `blk.0.attn_q.weight`.
        shape: Dimensions in row-major order (GGUF stores them reversed).
        type_id: Value of gguf.GGMLQuantizationType.
        start: First byte in the file.
        size_bytes: Number of bytes.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A .gguf file's scalar metadata and its tensors, in file order."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf_header(file: Path) -> GgufHeader:
    """Reads the header of `file` and checks that every tensor lies inside the file.

    Raises:
        CheckpointError: The file is no GGUF file, truncated or corrupt; names the tensor where it can.
    """
    with open(file, "rb") as stream:
        if stream.read(4) != _MAGIC:
            raise CheckpointError(f"{file} is no GGUF file (it doesn't begin with {_MAGIC.decode()}): check the path.")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(file, data).header()


class _Parser:
    """Walks through the mapped header; every step is checked against the end of the file."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.offset = file, data, len(_MAGIC)

    def header(self) -> GgufHeader:
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.file}: GGUF version {version}, expected one of {', '.join(map(str, _VERSIONS))}: "
                "convert the model again with a current llama.cpp."
            )
        tensor_count, entry_count = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment") or _DEFAULT_ALIGNMENT
        data_start = -(-self.offset // alignment) * alignment
        return GgufHeader(metadata, tuple(self._place(info, data_start) for info in infos))

    def _skip(self, size: int) -> int:
        start = self.offset
        if size > len(self.data) - start:
            raise self._corrupt(f"byte {start} of its header announces {size} more bytes than follow")
        self.offset += size
        return start

    def _scalar(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.data, self._skip(struct.calcsize(f"<{code}")))[0]

    def _string(self) -> str:
        size = self._scalar("Q")
        start = self._skip(size)
        return self.data[start : start + size].decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        """Returns a scalar or a string; skips over an array and returns None."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise self._corrupt(f"its metadata has a value of unknown type {kind} before byte {self.offset}")
        return self._scalar(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, length = self._scalar("I"), self._scalar("Q")
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(f"<{_SCALARS[kind]}"))
            return
        for _ in range(length):
            self._value(kind)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if dimensions > _MAX_DIMENSIONS:
            raise self._corrupt(f"tensor {name} claims {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _place(self, info: tuple[str, tuple[int, ...], int, int], data_start: int) -> GgufTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, shape, type_id, offset = info
        if type_id not in GGMLQuantizationType._value2member_map_:
            raise self._corrupt(f"tensor {name} has the unknown type {type_id}")
        block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        values = 1
        for extent in shape:
            values *= extent
        size = values // block_values * block_bytes
        if data_start + offset + size > len(self.data):
            raise self._corrupt(
                f"tensor {name} ends at byte {data_start + offset + size}, the file at {len(self.data)}"
            )
        return GgufTensor(name, shape, type_id, data_start + offset, size)

    def _corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file} is truncated or corrupt: {what}; download or copy it again.")
