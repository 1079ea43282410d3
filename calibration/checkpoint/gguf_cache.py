"""Conversions of .gguf files, each made once and kept."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path

from spikeexport.calibration.checkpoint.gguf_header import GgufHeader, read_gguf_header
from spikeexport.calibration.checkpoint.weight_files import find_tensors
from spikeexport.calibration.foundation.errors import CheckpointError, SpikeExportError
from spikeexport.calibration.foundation.files import staged_outputs
from spikeexport.calibration.foundation.progress import warn

CACHE_VARIABLE = "SPIKEEXPORT_CACHE"


def cache_root() -> Path:
    """Returns the cache folder: $SPIKEEXPORT_CACHE, else spikeexport under $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikeexport"


def converted_gguf(file: Path) -> Path:
    """Returns the Hugging Face folder with FP32 safetensors for `file`, converting it when that wasn't done yet.

    Raises:
        CheckpointError: The file is truncated, corrupt or of an unknown architecture, or the cache has no room.
    """
    folder = cache_root() / "gguf" / f"{file.stem}-{_key(file)}"
    header = read_gguf_header(file)
    if folder.is_dir() and _is_whole(folder):
        return folder
    from spikeexport.calibration.checkpoint.gguf_conversion import convert_gguf

    try:
        with staged_outputs(folder) as staging:
            _require_room(staging, header, file)
            convert_gguf(file, header, staging / folder.name)
    except CheckpointError:
        raise
    except SpikeExportError as error:
        raise CheckpointError(
            f"Converting {file} into the cache failed: {error} The cache's place is {CACHE_VARIABLE}."
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every tensor of an earlier conversion is there: a power cut can leave names without content."""
    try:
        find_tensors(folder)
    except CheckpointError as error:
        warn(f"{error} The conversion is made again.")
        return False
    return True


def _key(file: Path) -> str:
    from spikeexport.calibration.checkpoint.gguf_conversion import CONVERTER_VERSION

    status = file.stat()
    identity = f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{CONVERTER_VERSION}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _require_room(staging: Path, header: GgufHeader, file: Path) -> None:
    needed = sum(math.prod(tensor.shape) for tensor in header.tensors) * 4
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise CheckpointError(
            f"Converting {file.name} to FP32 needs {needed // 2**20} MB in {staging.parent}, {free // 2**20} MB are "
            f"free: free some space or set {CACHE_VARIABLE} to a folder with more."
        )
