"""QFeM: which linears keep an unquantised input (arXiv 2405.14428, section 4.1)."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.structure.sites import DecoderStructure

KNEE_FLOOR = 8.0
"""Ratios below this are never spikes worth an exclusion: ordinary inputs of GLU models lie between 2 and 7."""


def sites_at_least(ratios: Mapping[str, float], alpha: float) -> tuple[str, ...]:
    """Returns the sites with ratio >= alpha, largest first (the paper's rule)."""
    return tuple(site for site, ratio in sorted(ratios.items(), key=lambda item: -item[1]) if ratio >= alpha)


def knee(ratios: Mapping[str, float]) -> float:
    """Returns the threshold at the knee of the sorted ratios: the point farthest from the chord on a log scale.

    Args:
        ratios: Site name -> ratio.

    Returns:
        The smallest ratio that is still excluded, or infinity where no ratio reaches `KNEE_FLOOR`.
    """
    ordered = np.sort(np.fromiter(ratios.values(), float))[::-1]
    if len(ordered) < 3 or ordered[0] < KNEE_FLOOR:
        return float("inf")
    height = np.log(ordered)
    chord = np.linspace(height[0], height[-1], len(height))
    last = int(np.argmax(chord - height))
    above = ordered[: max(1, last)]
    return float(above[above >= KNEE_FLOOR].min())


def linears_of(structure: DecoderStructure, sites: Sequence[str]) -> tuple[str, ...]:
    """Returns all linears that read the given sites: siblings go together."""
    wanted = set(sites)
    return tuple(linear for site in structure.sites if site.name in wanted for linear in site.linears)


def sites_matching(structure: DecoderStructure, patterns: Sequence[str]) -> tuple[str, ...]:
    """Returns the sites of the linears that glob patterns match; a pattern without * matches a path's end too.

    Raises:
        UsageError: A pattern matches no decoder linear.
    """
    found: list[str] = []
    for pattern in patterns:
        matched = [
            site.name
            for site in structure.sites
            if any(fnmatch.fnmatchcase(path, pattern) or path.endswith(f".{pattern}") for path in site.linears)
        ]
        if not matched:
            raise UsageError(
                f"--exclude {pattern!r} matches none of the {len(structure.linears)} decoder linears; names look like "
                f"{structure.linears[-1]}."
            )
        found += [name for name in matched if name not in found]
    return tuple(found)


def weight_shares(structure: DecoderStructure, model) -> dict[str, float]:
    """Returns each site's share of the decoder linears' weights (0 to 1); they add up to 1."""
    sizes = {
        site.name: sum(model.get_submodule(linear).weight.numel() for linear in site.linears)
        for site in structure.sites
    }
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
