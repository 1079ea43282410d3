"""Prefix search by what is left: adds the spike tokens that still spike behind the prefix, BOS last."""

from __future__ import annotations

import numpy as np
from spikeexport.calibration.forward import Lead, windows_with_lead
from spikeexport.calibration.qfep.candidate import PrefixCandidate
from spikeexport.calibration.qfep.measure import residue_behind
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.spikes import lower_median
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn

MAX_TOKENS = 3
BRANCHES = 4
_SPIKE_FACTOR = 8.0
_MIN_GAIN = 0.5
"""Least drop of the summed log ratio that makes one more token worth its place."""


def residual_prefix(
    model: nn.Module, structure: DecoderStructure, windows: np.ndarray, bos: int | None
) -> PrefixCandidate | None:
    """Grows a prefix greedily while the sum over sites of log(max / median) behind it falls.

    Starts from BOS alone; each round tries the ids that contribute most to the spikes left, in front of the rest.

    Args:
        model: Unquantised.
        structure: Its sites.
        windows: int64 [n, L]; a few are enough.
        bos: The BOS id, or None (the prefix then starts empty).

    Returns:
        The best prefix of at most `MAX_TOKENS` tokens, or None where nothing helps.
    """
    best: tuple[int, ...] = () if bos is None else (bos,)
    residue, statistics = residue_behind(model, structure, windows, Lead(prefix=best), "Searching a prefix")
    while len(best) < MAX_TOKENS:
        tried = []
        for token in spiking_ids(statistics, windows_with_lead(windows, Lead(prefix=best)), BRANCHES):
            if token in best:
                continue
            ids = (token, *best)
            tried.append((*residue_behind(model, structure, windows, Lead(prefix=ids), f"Trying prefix {ids}"), ids))
        if not tried:
            break
        candidate, its_statistics, ids = min(tried, key=lambda item: item[0].log_ratios)
        if candidate.log_ratios > residue.log_ratios - _MIN_GAIN:
            break
        residue, statistics, best = candidate, its_statistics, ids
    return PrefixCandidate(best, "residual") if best else None


def spiking_ids(statistics: dict[str, SiteStatistics], ids: np.ndarray, count: int) -> list[int]:
    """Returns the ids that carry the most spike: sum over sites and tokens of log(S / (8 medians)) where positive."""
    weight: dict[int, float] = {}
    for site in statistics.values():
        absmax = site.token_absmax
        excess = np.log(np.maximum(absmax, 1e-30) / (_SPIKE_FACTOR * np.maximum(lower_median(absmax), 1e-30)[:, None]))
        rows, columns = np.nonzero(excess > 0)
        for row, column in zip(rows, columns, strict=True):
            token = int(ids[row, column])
            weight[token] = weight.get(token, 0.0) + float(excess[row, column])
    return sorted(weight, key=lambda token: -weight[token])[:count]
