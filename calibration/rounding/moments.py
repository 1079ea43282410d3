"""Second moments of the inputs of the decoder's linears, a few layers at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values, run_to_module
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.observe import site_hooks
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn

BUDGET_BYTES = 2 << 30
"""Memory for the moments that are gathered in one pass over the windows."""


def site_moments(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    lead: Lead,
    *,
    key_values: KeyValues | None = None,
    budget_bytes: int = BUDGET_BYTES,
    batch: int = 4,
) -> Iterator[tuple[Site, torch.Tensor]]:
    """Yields each site with the mean of x x^T over all tokens, float32 [channels, channels].

    As many layers as fit `budget_bytes` are gathered together; a pass stops behind the last of them.

    Args:
        model: Floating point, folds applied.
        structure: Its sites.
        windows: int64 [n, L].
        lead: What stands before each window (prefix positions do not count).
        key_values: The prefix's cache when already known.
        budget_bytes: Memory for moments; at least one layer is gathered at a time.
        batch: Windows per call.
    """
    if lead.prefix and key_values is None:
        key_values = prefix_key_values(model, lead.prefix)
    groups = layer_groups(structure, budget_bytes)
    with progress_bar("Measuring how inputs move together", len(groups) * len(windows)) as advance:
        for group in groups:
            sites = tuple(site for site in structure.sites if site.layer in group)
            gather = _Moments(sites)
            last = structure.layers[group[-1]]
            with site_hooks(model, sites, gather.add):
                run_to_module(model, last, windows, lead, batch=batch, key_values=key_values, advance=advance)
            yield from gather.results()


def layer_groups(structure: DecoderStructure, budget_bytes: int) -> list[range]:
    """Cuts the layers into consecutive groups whose moments fit the budget together."""
    groups: list[range] = []
    size = 0
    for layer in range(len(structure.layers)):
        own = sum(4 * site.channels**2 for site in structure.in_layer(layer))
        if groups and size + own <= budget_bytes:
            groups[-1] = range(groups[-1].start, layer + 1)
            size += own
        else:
            groups.append(range(layer, layer + 1))
            size = own
    return groups


class _Moments:
    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sites
        self._sum = {site.name: torch.zeros(site.channels, site.channels) for site in sites}
        self._tokens = dict.fromkeys(self._sum, 0)

    def add(self, site: Site, x: torch.Tensor) -> None:
        flat = x.detach().flatten(0, -2).float()
        self._sum[site.name].addmm_(flat.T, flat)
        self._tokens[site.name] += len(flat)

    def results(self) -> Iterator[tuple[Site, torch.Tensor]]:
        for site in self._sites:
            yield site, self._sum.pop(site.name) / max(1, self._tokens[site.name])
