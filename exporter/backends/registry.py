"""The table of backends: a new backend is one sub-package and one line here."""

from __future__ import annotations

import importlib

from spikeexport.backends.base import Backend
from spikeexport.calibration.foundation.errors import UsageError

AUTO = "auto"

BACKENDS: dict[str, str] = {
    "onnxruntime": "spikeexport.backends.onnxruntime.backend:OnnxRuntimeBackend",
    "tensorrt": "spikeexport.backends.tensorrt.backend:TensorRtBackend",
    "tensorrt-rtx": "spikeexport.backends.tensorrt_rtx.backend:TensorRtRtxBackend",
}
"""Name after `--backend` -> "module:class"; imported only when the backend is used."""


def open_backend(name: str) -> Backend:
    """Returns the backend of that name; `auto` takes TensorRT where a GPU and TensorRT answer, else ONNX Runtime.

    Raises:
        UsageError: No backend has that name.
    """
    if name == AUTO:
        tensorrt = open_backend("tensorrt")
        return tensorrt if tensorrt.why_unavailable() is None else open_backend("onnxruntime")
    if name not in BACKENDS:
        raise UsageError(f"Unknown backend {name!r}: choose one of {', '.join([AUTO, *BACKENDS])}.")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
