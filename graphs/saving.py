"""Writing a graph as one .onnx file and one file of external data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.progress import progress_bar

INLINE_BYTES = 1024
"""Tensors up to this size stay inside the .onnx, where scales and shapes can be read without the data file."""

_ALIGNMENT = 65536
_ALIGN_FROM_BYTES = 65536
_PAGE_BYTES = 4096


def data_name(onnx_name: str) -> str:
    """Returns the file name of the external data that belongs to a .onnx file's name."""
    return f"{onnx_name}.data"


def save_model(model: ir.Model, path: Path) -> None:
    """Writes `path` and, beside it, its external data; lazy tensors are evaluated one at a time.

    Large tensors start at multiples of 64 KiB, so that they can be memory-mapped on every platform.

    Raises:
        OSError: The file system refused; what was written stays for the caller (a staging folder) to remove.
        GraphError: A weight cannot be stored in the graph's type.
    """
    total = len(model.graph.initializers)
    with progress_bar(f"Writing {path.name}", total) as advance, _own_errors():
        ir.save(
            model,
            path,
            external_data=data_name(path.name),
            size_threshold_bytes=INLINE_BYTES,
            alignment=_ALIGNMENT,
            align_threshold=_ALIGN_FROM_BYTES,
            callback=lambda tensor, info: advance(),
        )


def externalise(model: ir.Model, folder: Path, name: str) -> None:
    """Writes the large tensors of `model` to `folder/name` and makes the model read them from there.

    Raises:
        OSError: The file system refused.
        GraphError: A weight cannot be stored in the graph's type.
    """
    with progress_bar(f"Writing {name}", len(model.graph.initializers)) as advance, _own_errors():
        ir.external_data.unload_from_model(
            model,
            folder,
            name,
            size_threshold_bytes=INLINE_BYTES,
            alignment=_PAGE_BYTES,
            align_threshold=_ALIGN_FROM_BYTES,
            callback=lambda tensor, info: advance(),
        )


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Lets errors that lazy weights raise while they are serialised through; onnx_ir wraps them several times."""
    try:
        yield
    except ir.serde.SerdeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SpikeExportError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
