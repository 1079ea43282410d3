"""Static input scales from what was seen: absmax, a percentile, or the least squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from spikeexport.calibration.forward import KeyValues, Lead, run_windows
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.input_transform import NONE, InputTransform
from spikeexport.calibration.observe import site_hooks
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn

PERCENTILE = 99.999
BINS = 8192
_CANDIDATES = 100


@dataclass(frozen=True)
class ScaleRule:
    """How the clipping point of an input follows from its values; `percentile` counts for that method alone."""

    method: Literal["absmax", "percentile", "mse"]
    percentile: float = PERCENTILE


def scale_rule(text: str) -> ScaleRule:
    """Reads "absmax", "percentile[:P]" or "mse".

    Raises:
        UsageError: It is something else, or P is not above 50 and at most 100.
    """
    name, _, number = text.partition(":")
    if name == "percentile":
        try:
            percentile = float(number or PERCENTILE)
        except ValueError:
            percentile = float("nan")
        if not 50 < percentile <= 100:
            raise UsageError(f"--scales {text}: the percentile is a number above 50 and at most 100.")
        return ScaleRule("percentile", percentile)
    if number or name not in ("absmax", "mse"):
        raise UsageError(f"--scales {text}: expected auto, absmax, percentile, percentile:99.99 or mse.")
    return ScaleRule("absmax" if name == "absmax" else "mse")


def clipping_points(
    model: nn.Module,
    structure: DecoderStructure,
    sources: Sequence[np.ndarray],
    lead: Lead,
    absmax: dict[str, float],
    rule: ScaleRule,
    *,
    transforms: Mapping[str, InputTransform] | None = None,
    key_values: KeyValues | None = None,
    batch: int = 4,
) -> dict[str, float]:
    """Measures the value of each input that becomes the largest INT8 code: the largest that a source asks for.

    A percentile of all text together would follow the longest source and clip what is usual in another.

    Args:
        model: Floating point, folds applied.
        structure: Its sites.
        sources: One int64 [n, L] for each source of text.
        lead: What stands before each window.
        absmax: Site name -> largest |x| on all of them.
        rule: A percentile, or least squared error.
        transforms: Site name -> what happens to the input first.
        key_values: The prefix's cache when already known.
        batch: Windows per call.
    """
    counts: dict[str, torch.Tensor] = {}
    found = dict.fromkeys(absmax, 0.0)

    def count(site: Site, x: torch.Tensor) -> None:
        ready = (transforms or {}).get(site.name, NONE)(x.detach())
        counts[site.name] += torch.histc(ready.abs().float(), BINS, 0.0, absmax[site.name]).double()

    total = sum(len(windows) for windows in sources)
    with site_hooks(model, structure.sites, count), progress_bar("Choosing scales", total) as advance:
        for windows in sources:
            counts |= {site.name: torch.zeros(BINS, dtype=torch.float64) for site in structure.sites}
            for rows, _ in run_windows(model, windows, lead, batch=batch, key_values=key_values, body_only=True):
                advance(rows.stop - rows.start)
            for name, histogram in counts.items():
                if histogram.any():
                    found[name] = max(found[name], clipping_point(histogram.numpy(), absmax[name], rule))
    return {name: point or absmax[name] for name, point in found.items()}


def clipping_point(histogram: np.ndarray, absmax: float, rule: ScaleRule) -> float:
    """Returns the |x| that becomes code 127.

    Args:
        histogram: Counts of |x| in equal bins from 0 to absmax, float64 [bins].
        absmax: Upper end of the last bin.
        rule: "percentile": the smallest bin edge that this share of the values does not exceed. "mse": the edge with
            the least sum of squared errors, rounding (step^2 / 12) and clipping together.
    """
    edges = np.arange(1, len(histogram) + 1) / len(histogram) * absmax
    if rule.method == "absmax":
        return absmax
    if rule.method == "percentile":
        reached = np.cumsum(histogram) >= histogram.sum() * rule.percentile / 100
        return float(edges[int(np.argmax(reached))])
    centres = edges - edges[0] / 2
    tried = absmax * np.geomspace(1e-3, 1.0, _CANDIDATES)
    return float(min(tried, key=lambda limit: _squared_error(histogram, centres, limit)))


def _squared_error(histogram: np.ndarray, centres: np.ndarray, limit: float) -> float:
    inside = centres <= limit
    step = limit / 127
    rounding = np.minimum(centres[inside], step / np.sqrt(12)) ** 2
    return float((histogram[inside] * rounding).sum() + (histogram[~inside] * (centres[~inside] - limit) ** 2).sum())
