"""What a prefix leaves behind: the spikes of the tokens that follow it, and the floating-point loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.spikes import spike_ratio
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn


@dataclass(frozen=True)
class Residue:
    """Spikes behind a lead.

    Attributes:
        log_ratios: Sum over all input sites of log(max / median).
        worst: Largest ratio of any site.
        worst_site: Its name.
    """

    log_ratios: float
    worst: float
    worst_site: str


def residue_of(statistics: dict[str, SiteStatistics]) -> Residue:
    """Summarises statistics behind a lead."""
    ratios = {name: spike_ratio(site.token_absmax) for name, site in statistics.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    return Residue(sum(math.log(ratio) for ratio in ratios.values()), ratios[worst], worst)


def residue_behind(
    model: nn.Module, structure: DecoderStructure, windows: np.ndarray, lead: Lead, description: str
) -> tuple[Residue, dict[str, SiteStatistics]]:
    """Runs windows behind a lead and summarises the spikes that are left."""
    statistics = observe_sites(model, structure, windows, lead, description=description)
    return residue_of(statistics), statistics
