"""The `tensorrt-rtx` backend: engines built ahead of time, without a GPU, for one or several compute capabilities."""

from __future__ import annotations

from spikeexport.backends.tensorrt.family import TensorRtFamily
from spikeexport.backends.tensorrt.flavor import TENSORRT_RTX


class TensorRtRtxBackend(TensorRtFamily):
    """The same driver as TensorRT's; the truth comes from the builder's log, since no GPU loads the engine here."""

    name = TENSORRT_RTX.backend
    flavor = TENSORRT_RTX
