"""Static scales of an INT8 KV cache, measured on the caches that real text fills behind BOS or the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from spikeexport.calibration.cache_argument import with_cache
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values, windows_with_lead
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.prefix_cache import divide_values
from spikeexport.calibration.records.plan import Fold, PlanTensors, kv_scale_name

if TYPE_CHECKING:
    import torch
    from torch import nn

KV_LIMIT = 127
"""Largest code; absmax falls on it, nothing in the calibration text is clipped."""

_SMALLEST_SCALE = 1e-6


def measure_kv_scales(
    model: nn.Module,
    windows: np.ndarray,
    lead: Lead,
    folds: Sequence[Fold] = (),
    tensors: PlanTensors | None = None,
    batch: int = 4,
) -> PlanTensors:
    """Returns the scale of each channel of each layer's keys (after rotary embedding) and values: absmax / 127.

    Args:
        model: Unfolded.
        windows: int64 [n, L] without BOS.
        lead: BOS (part of the cache) or prefix (its own keys and values stay in floating point and are left out).
        folds: The plan's folds; a v -> o fold divides the values.
        tensors: The folds' vectors.
        batch: Windows per call.

    Returns:
        `kv.{layer}.key` and `kv.{layer}.value` -> float32 [kv_heads, head_dim].

    Raises:
        CalibrationError: A key or value is not finite.
    """
    absmax = _cache_absmax(model, windows, lead, batch)
    pairs = divide_values(absmax, folds, tensors or {})
    scales: PlanTensors = {}
    for layer, pair in enumerate(pairs):
        for kind, array in zip(("key", "value"), pair, strict=True):
            if not np.isfinite(array).all():
                raise CalibrationError(
                    f"The {kind}s of layer {layer} hold NaN or infinite values during calibration: check the "
                    "checkpoint's weights, or leave --kv int8 out."
                )
            scales[kv_scale_name(layer, kind)] = np.maximum(array[0, :, 0] / KV_LIMIT, _SMALLEST_SCALE)
    return scales


def _cache_absmax(model: nn.Module, windows: np.ndarray, lead: Lead, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns per layer the largest magnitude of each channel, float32 [1, kv_heads, 1, head_dim]."""
    prefix = prefix_key_values(model, lead.prefix) if lead.prefix else []
    ids = windows_with_lead(windows, lead)
    largest: list[tuple[np.ndarray, np.ndarray]] = []
    with progress_bar("Measuring the KV cache", len(ids)) as advance:
        for start in range(0, len(ids), batch):
            rows = ids[start : start + batch]
            found = _fill_cache(model, rows, prefix)
            pairs = zip(largest or found, found, strict=True)
            largest = [(np.maximum(old[0], new[0]), np.maximum(old[1], new[1])) for old, new in pairs]
            advance(len(rows))
    return largest


def _fill_cache(model: nn.Module, rows: np.ndarray, prefix: KeyValues) -> list[tuple[np.ndarray, np.ndarray]]:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(prefix):
        cache.update(key.expand(len(rows), -1, -1, -1), value.expand(len(rows), -1, -1, -1), layer)
    depth = prefix[0][0].shape[2] if prefix else 0
    device = next(model.parameters()).device
    positions = torch.arange(depth, depth + rows.shape[1], device=device)[None].expand(len(rows), -1)
    with torch.inference_mode():
        inputs = torch.as_tensor(rows, device=device)
        body: Any = model.base_model
        body(input_ids=inputs, **with_cache(body, cache), use_cache=True, position_ids=positions)
    return [(_absmax(layer.keys[:, :, depth:]), _absmax(layer.values[:, :, depth:])) for layer in cache.layers]


def _absmax(tensor: torch.Tensor) -> np.ndarray:
    import torch

    return tensor.abs().amax(dim=(0, 2), keepdim=True).to("cpu", torch.float32).numpy()
