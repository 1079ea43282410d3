"""The `tensorrt` backend: TensorRT 10.x and 11.x, on the machine that runs the engine."""

from __future__ import annotations

from spikeexport.backends.tensorrt.family import TensorRtFamily
from spikeexport.backends.tensorrt.flavor import TENSORRT


class TensorRtBackend(TensorRtFamily):
    """Strongly typed engines with a prefill and a decode profile, for the GPU at hand."""

    name = TENSORRT.backend
    flavor = TENSORRT
