"""How far the inputs of the linears spike, in the original and in the candidate: what prefix and smoothing did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_TINY = 1e-12

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


@dataclass(frozen=True)
class SpikeText:
    """The first window's tokens with S at the input that spikes most in the original.

    Attributes:
        site: Module path of the input.
        tokens: The text of each token, the one in front (BOS) included.
        before: S of each in the original.
    """

    site: str
    tokens: tuple[str, ...]
    before: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        pairs = zip(self.tokens, self.before, strict=True)
        return {"site": self.site, "tokens": [[token, round(value, 4)] for token, value in pairs]}


def site_spikes(
    sites: Sequence[str], before: tuple[Read, np.ndarray], after: tuple[Read, np.ndarray]
) -> tuple[tuple[SiteSpikes, ...], dict[str, np.ndarray]]:
    """Measures both sides.

    Args:
        sites: Names.
        before: The original and the windows as they are fed to it.
        after: The candidate and the same for it.

    Returns:
        One entry for each site, and S of every token of the original's first window by site.
    """
    originals, candidates = (_absmaxima(sites, *side) for side in (before, after))
    seen = [site for site in sites if originals[site] and candidates[site]]
    spikes = tuple(SiteSpikes(site, _means(originals[site]), _means(candidates[site])) for site in seen)
    return spikes, {site: originals[site][0] for site in seen}


def spike_text(
    spikes: Sequence[SiteSpikes], absmax: Mapping[str, np.ndarray], ids: np.ndarray, tokenizer: Any
) -> SpikeText | None:
    """Returns the text of ids int64 [S] with S at the input whose ratio is largest; None where none saw all tokens."""
    whole = [site for site in spikes if len(absmax[site.name]) == len(ids)]
    if not whole:
        return None
    worst = max(whole, key=lambda site: site.before[0] / max(site.before[1], _TINY)).name
    tokens = tuple(tokenizer.decode([int(token)]) for token in ids)
    return SpikeText(worst, tokens, tuple(float(value) for value in absmax[worst]))


def _absmaxima(sites: Sequence[str], read: Read, windows: np.ndarray) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for window in windows:
        for site, tensor in read(window[None]).items():
            found[site].append(np.abs(tensor.astype(np.float32)).max(axis=-1).ravel())
    return found


def _means(absmaxima: list[np.ndarray]) -> tuple[float, float]:
    """Mean over windows of the largest S and of its lower median, as the ratio of QFeM takes it."""
    medians = [float(np.sort(absmax)[(len(absmax) - 1) // 2]) for absmax in absmaxima]
    return float(np.mean([absmax.max() for absmax in absmaxima])), float(np.mean(medians))


def _json(pair: tuple[float, float]) -> dict[str, float]:
    return {"max": pair[0], "median": pair[1], "ratio": pair[0] / max(pair[1], _TINY)}
