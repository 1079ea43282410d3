"""Ranges of the first layers over the whole vocabulary: what they see depends on the token alone more than on its text.

No calibration text holds every token. Pieces of characters outside ASCII, which text in another language or with
other quotation marks is full of, reach several times the range that a text without them shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values, run_to_module
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.input_transform import rotate
from spikeexport.calibration.observe import site_hooks
from spikeexport.calibration.site_statistics import Ranges, SiteStatistics
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn

LAYER_SHARE = 0.2
"""Share of the layers, counted from the first, that the pass runs."""

_MOST_TOKENS = 1 << 16
_BATCH = 512


def with_vocabulary(
    model: nn.Module,
    structure: DecoderStructure,
    statistics: dict[str, SiteStatistics],
    tokens: np.ndarray,
    lead: Lead,
    *,
    key_values: KeyValues | None = None,
    rotations: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, SiteStatistics]:
    """Widens the channel ranges of the first layers by what each token, alone behind the lead, gives.

    Args:
        model: Unquantised, without folds.
        structure: Its sites.
        statistics: Measured behind the same lead; spike ratios stay as they are. Without a BOS or a prefix nothing is
            added: the first token of a text spikes, whichever it is.
        tokens: int64 [n], the ordinary tokens; of more than 65536, as many evenly spaced ones.
        lead: What stands before each token.
        key_values: The prefix's cache when already known.
        rotations: Site name -> rotation, as for `observe_sites`.
    """
    if not (lead.prefix or lead.inline):
        return statistics
    if len(tokens) > _MOST_TOKENS:
        tokens = tokens[np.arange(_MOST_TOKENS) * len(tokens) // _MOST_TOKENS]
    if lead.prefix and key_values is None:
        key_values = prefix_key_values(model, lead.prefix)
    layers = math.ceil(LAYER_SHARE * len(structure.layers))
    sites = tuple(site for site in structure.sites if site.layer < layers)
    widened = dict(statistics)

    def widen(site: Site, x: torch.Tensor) -> None:
        flat = x.detach().flatten(0, -2)
        if not len(flat):
            return
        rotation = (rotations or {}).get(site.name)
        rotated = None if rotation is None else Ranges.of(rotate(flat, rotation))
        widened[site.name] = widened[site.name].widened(Ranges.of(flat), rotated)

    with (
        site_hooks(model, sites, widen),
        progress_bar("Running every token of the vocabulary through the first layers", len(tokens)) as advance,
    ):
        last = structure.layers[layers - 1]
        run_to_module(model, last, tokens[:, None], lead, batch=_BATCH, key_values=key_values, advance=advance)
    return widened
