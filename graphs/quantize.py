"""The one definition of INT8 quantisation that graphs follow, in numpy."""

from __future__ import annotations

import math

import numpy as np
from spikeexport.calibration.foundation.errors import PlanError

WEIGHT_LIMIT = 127
ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
FP16_SMALLEST_NORMAL = 2.0**-14


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Returns one symmetric scale per output channel: absmax / 127, or 1 for a channel of zeros.

    Args:
        weight: float32 [in, out].

    Returns:
        float32 [out], finite and > 0.

    Raises:
        ValueError: The weight holds NaN or infinity.
    """
    absmax = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    if not np.isfinite(absmax).all():
        raise ValueError("the weight holds NaN or infinity")
    scales = (absmax / np.float32(WEIGHT_LIMIT)).astype(np.float32)
    # A channel so small that its step underflows is a channel of zeros for every practical purpose.
    return np.where(scales >= np.finfo(np.float32).tiny, scales, np.float32(1))


def quantize_weight(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns INT8 codes: clip(round half to even(w / s), -127, 127).

    Args:
        weight: float32 [in, out].
        scales: float32 [out].

    Returns:
        int8 [in, out], C-contiguous.
    """
    codes = np.rint(weight / scales)
    np.clip(codes, -WEIGHT_LIMIT, WEIGHT_LIMIT, out=codes)
    return np.ascontiguousarray(codes.astype(np.int8))


def quantize_activation(values: np.ndarray, scale: float) -> np.ndarray:
    """Returns INT8 codes of ONNX QuantizeLinear with zero point 0: saturate(round half to even(x / s)).

    Args:
        values: float32, any shape.
        scale: The static per-tensor scale.
    """
    codes = np.rint(values.astype(np.float32, copy=False) / np.float32(scale))
    return np.clip(codes, ACTIVATION_MIN, ACTIVATION_MAX).astype(np.int8)


def check_activation_scale(scale: float, site: str) -> str | None:
    """Checks a scale as a backend will see it.

    Args:
        scale: Real value of one INT8 step; stored as float32.
        site: Name used in messages.

    Returns:
        A warning for a scale that is subnormal in FP16, else None.

    Raises:
        PlanError: The scale is not finite and > 0 once stored as float32.
    """
    stored = float(np.float32(scale))
    if not (math.isfinite(stored) and stored > 0):
        raise PlanError(
            f"{site}: the input scale {scale!r} is {stored!r} in float32, expected a finite value > 0: "
            "calibrate again on text that reaches this linear."
        )
    if stored < FP16_SMALLEST_NORMAL:
        return (
            f"{site}: the input scale {stored:.3g} is subnormal in FP16 (below {FP16_SMALLEST_NORMAL:.2g}); a backend "
            "that casts scales to FP16 loses precision here."
        )
    return None
