"""PrefixQuant's prefix search (arXiv 2410.05265, section 4): the most frequent outlier tokens, BOS last."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from spikeexport.calibration.qfep.candidate import PrefixCandidate
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.spikes import spike_mask
from spikeexport.calibration.structure.sites import DecoderStructure

RARE_SHARE = 0.1


def prefixquant_prefix(
    structure: DecoderStructure, statistics: dict[str, SiteStatistics], ids: np.ndarray, bos: int | None
) -> PrefixCandidate | None:
    """Takes the o most frequent outlier ids, o = ceil(the largest mean count of outliers per sample of any layer).

    Outliers are tokens whose absmax at the input of a down_proj exceeds 64 medians; position 0 is left out.

    Args:
        structure: The model's sites.
        statistics: S behind BOS.
        ids: int64 [samples, tokens], the ids that S belongs to (BOS included).
        bos: The BOS id, or None.

    Returns:
        The outlier ids with BOS last; BOS alone where there are no outliers, or a single id seen in less than a
        tenth of the samples; None where that leaves nothing.
    """
    frequency: Counter[int] = Counter()
    holders: dict[int, set[int]] = {}
    mean_count = 0.0
    for site in structure.sites:
        if site.role != "down":
            continue
        mask = spike_mask(statistics[site.name].token_absmax)
        mask[:, 0] = False
        mean_count = max(mean_count, float(mask.sum(1).mean()))
        for row, column in zip(*np.nonzero(mask), strict=True):
            token = int(ids[row, column])
            frequency[token] += 1
            holders.setdefault(token, set()).add(int(row))
    chosen = [token for token, _ in frequency.most_common(math.ceil(mean_count)) if token != bos]
    if len(chosen) == 1 and len(holders[chosen[0]]) < RARE_SHARE * len(ids):
        chosen = []
    prefix = (*chosen, *(() if bos is None else (bos,)))
    return PrefixCandidate(prefix, "prefixquant") if prefix else None
