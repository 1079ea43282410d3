"""How far the inputs of the linears spike, in the original and in the candidate: what prefix and smoothing did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Read = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Runs token ids int64 [1, S] as they are fed and returns site -> the tensor [1, S, channels] there."""


@dataclass(frozen=True)
class SiteSpikes:
    """Token-wise absolute maxima S at one input, means over the windows.

    Attributes:
        name: Module path of the first linear that reads the tensor.
        before: (max over tokens, median) in the original behind its BOS.
        after: The same in the candidate, behind its prefix and its folds.
    """

    name: str
    before: tuple[float, float]
    after: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"name": self.name, "before": _json(self.before), "after": _json(self.after)}


def site_spikes(
    sites: Sequence[str], before: tuple[Read, np.ndarray], after: tuple[Read, np.ndarray]
) -> tuple[SiteSpikes, ...]:
    """Measures both sides.

    Args:
        sites: Names.
        before: The original and the windows as they are fed to it.
        after: The candidate and the same for it.
    """
    sides = [_means(sites, *side) for side in (before, after)]
    return tuple(SiteSpikes(site, sides[0][site], sides[1][site]) for site in sites)


def _means(sites: Sequence[str], read: Read, windows: np.ndarray) -> dict[str, tuple[float, float]]:
    found: dict[str, list[tuple[float, float]]] = {site: [] for site in sites}
    for window in windows:
        for site, tensor in read(window[None]).items():
            absmax = np.abs(tensor.astype(np.float32)).max(axis=-1).ravel()
            # The lower median, as the ratio of QFeM takes it.
            found[site].append((float(absmax.max()), float(np.sort(absmax)[(len(absmax) - 1) // 2])))
    return {site: (_mean(pairs, 0), _mean(pairs, 1)) for site, pairs in found.items()}


def _mean(pairs: list[tuple[float, float]], index: int) -> float:
    return sum(pair[index] for pair in pairs) / len(pairs)


def _json(pair: tuple[float, float]) -> dict[str, float]:
    return {"max": pair[0], "median": pair[1], "ratio": pair[0] / max(pair[1], 1e-12)}
