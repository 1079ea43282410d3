"""Writes safetensors tensor by tensor, so that a model never has to be in memory as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from spikeexport.calibration.checkpoint.weight_files import INDEX_FILE, SINGLE_FILE

Shapes = dict[str, tuple[int, ...]]

_BYTES_PER_FLOAT = 4


def write_float32_checkpoint(
    folder: Path, shapes: Shapes, read: Callable[[str], np.ndarray], shard_bytes: int = 512 * 2**20
) -> None:
    """Writes FP32 tensors as model.safetensors, or as shards with their index.

    Args:
        folder: An existing folder.
        shapes: Every tensor's name and shape, in the order to be written.
        read: Gives a tensor's values, float32 of that shape; called once per tensor, in order.
        shard_bytes: Largest shard; a tensor that is larger gets a shard of its own.
    """
    shards = _group(shapes, shard_bytes)
    names = [SINGLE_FILE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, read)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": _size(shapes)}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _group(shapes: Shapes, shard_bytes: int) -> list[Shapes]:
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and _size(shards[-1]) + _size({name: shape}) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _size(shapes: Shapes) -> int:
    return sum(math.prod(shape) * _BYTES_PER_FLOAT for shape in shapes.values())


def _write_file(file: Path, shapes: Shapes, read: Callable[[str], np.ndarray]) -> None:
    with open(file, "wb") as stream:
        header = _header(shapes)
        stream.write(len(header).to_bytes(8, "little") + header)
        for name in shapes:
            stream.write(np.ascontiguousarray(read(name), dtype="<f4").data)


def _header(shapes: Shapes) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size({name: shape})
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    # Padded so that the data, which is mapped as it lies, begins at a multiple of 8 bytes.
    return header + b" " * (-len(header) % 8)
