"""Experts that too few calibration tokens reached: their ranges are the layer's."""

from __future__ import annotations

import numpy as np
from spikeexport.calibration.site_statistics import Ranges, SiteStatistics
from spikeexport.calibration.structure.sites import DecoderStructure, Site

MIN_TOKENS = 64
"""Fewer tokens than this say little about an expert's largest activation."""


def rare_experts(structure: DecoderStructure, statistics: dict[str, SiteStatistics]) -> dict[str, int]:
    """Returns module path -> tokens seen of the experts that fewer than `MIN_TOKENS` tokens reached."""
    seen = {site.expert: statistics[site.name].tokens_seen for site in structure.sites if site.expert}
    return {expert: tokens for expert, tokens in seen.items() if tokens < MIN_TOKENS}


def with_layer_ranges(structure: DecoderStructure, statistics: dict[str, SiteStatistics]) -> dict[str, SiteStatistics]:
    """Gives rare experts the ranges of all experts of their layer together; S stays what was measured.

    Experts read the same hidden channels, so that their inputs' ranges are joined channel by channel; the channels
    between up and down are each expert's own, so that there the largest of all holds for every channel.
    """
    rare = rare_experts(structure, statistics)
    return statistics | {
        site.name: _joined(site, structure, statistics) for site in structure.sites if site.expert in rare
    }


def _joined(site: Site, structure: DecoderStructure, statistics: dict[str, SiteStatistics]) -> SiteStatistics:
    peers = [
        statistics[other.name]
        for other in structure.in_layer(site.layer)
        if other.expert and other.role == site.role and statistics[other.name].tokens_seen > 0
    ]
    return SiteStatistics(
        statistics[site.name].token_absmax,
        _widest([peer.ranges for peer in peers], site),
        _widest([peer.rotated for peer in peers if peer.rotated], site) if statistics[site.name].rotated else None,
    )


def _widest(ranges: list[Ranges], site: Site) -> Ranges:
    absmax = np.stack([one.absmax for one in ranges] or [np.zeros(site.channels, np.float32)]).max(axis=0)
    if site.role == "down":
        absmax = np.full(site.channels, absmax.max(), np.float32)
    return Ranges.symmetric(absmax)
