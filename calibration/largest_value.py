"""The largest activations that calibration saw, against the range of FP16."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from spikeexport.calibration.forward import KeyValues, Lead, run_windows
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.spikes import HiddenStateWatch
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn

FP16_MAX = 65504.0
NEAR = 0.5
"""Share of FP16's largest value from which on text that was not calibrated on may exceed it."""

_WINDOWS = 4


def largest_value(
    model: nn.Module,
    structure: DecoderStructure,
    statistics: Mapping[str, SiteStatistics],
    windows: np.ndarray,
    lead: Lead,
    key_values: KeyValues | None = None,
) -> float:
    """Returns the largest |x| of all linears' inputs (products of gate and up among them) and all hidden states.

    Args:
        model: Floating point, without folds.
        structure: Its sites.
        statistics: Of all windows.
        windows: int64 [n, L]; hidden states are looked at in the first few.
        lead: What stands before each window; a prefix's own activations never run in the graph and do not count.
        key_values: The prefix's cache when already known.
    """
    watch = HiddenStateWatch(model, structure)
    try:
        for _ in run_windows(model, windows[:_WINDOWS], lead, key_values=key_values, body_only=True):
            pass
    finally:
        layers = watch.close()
    inputs = [float(np.nanmax(site.token_absmax)) for site in statistics.values() if site.tokens_seen]
    return max([layer.max for layer in layers] + inputs)


def fp16_warning(largest: float | None) -> str | None:
    """Returns what to tell a user who wants FP16, or None where the range is wide enough or was not measured."""
    if largest is None or largest < NEAR * FP16_MAX:
        return None
    return (
        f"Calibration saw activations up to {largest:.4g}; FP16 ends at {FP16_MAX:.0f}, beyond which they become "
        "infinite: export with --dtype bf16."
    )
