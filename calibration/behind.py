"""What a plan needs to know about a model behind one lead: statistics, and how good it is there unquantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.largest_value import largest_value
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.quality import Quality, Reference, evaluate, first_token_loss, loss_of_windows
from spikeexport.calibration.rare_experts import with_layer_ranges
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.structure.sites import DecoderStructure
from spikeexport.calibration.vocabulary import with_vocabulary
from torch import nn


@dataclass(frozen=True)
class Behind:
    """A lead with what was measured behind it, without folds or quantisation.

    Attributes:
        lead: What stands before each window.
        statistics: Per site, over the calibration windows that were run.
        reference: Log-probabilities on the held-out windows.
        original: Loss on the held-out windows without their first tokens.
        first: Loss of a window's first token.
        tokens: Tokens of a window.
        largest: Largest value in the decoder.
    """

    lead: Lead
    statistics: dict[str, SiteStatistics]
    reference: Reference
    original: Quality
    first: float
    tokens: int
    largest: float

    @property
    def loss(self) -> float:
        """Floating-point loss of whole windows."""
        return self.loss_with(self.original)

    def loss_with(self, quality: Quality) -> float:
        """Loss of whole windows for another quality behind this lead."""
        return loss_of_windows(quality.loss, self.first, self.tokens)


def measure_behind(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    held_out: np.ndarray,
    lead: Lead,
    statistics: dict[str, SiteStatistics],
) -> Behind:
    """Completes `statistics`, taken on `windows` behind `lead`, by the original model's quality there."""
    kept: list[torch.Tensor] = []
    original = evaluate(model, held_out, lead, keep=kept)
    largest = largest_value(model, structure, with_layer_ranges(structure, statistics), windows, lead)
    first = first_token_loss(model, held_out, lead)
    return Behind(lead, statistics, Reference(kept), original, first, windows.shape[1], largest)


def measure_more(
    model: nn.Module,
    structure: DecoderStructure,
    behind: Behind,
    windows: np.ndarray,
    tokens: np.ndarray | None,
    rotations: Mapping[str, torch.Tensor] | None = None,
) -> Behind:
    """Adds the statistics of more windows, and of every ordinary token by itself where `tokens` are given.

    Experts that few tokens reached, all windows together, have the ranges of their layer after that.
    """
    statistics = behind.statistics
    if len(windows):
        description = "Measuring activations on more text"
        more = observe_sites(model, structure, windows, behind.lead, rotations=rotations, description=description)
        statistics = {name: site.joined(more[name]) for name, site in statistics.items()}
    if tokens is not None:
        statistics = with_vocabulary(model, structure, statistics, tokens, behind.lead, rotations=rotations)
    statistics = with_layer_ranges(structure, statistics)
    seen = max(float(site.channel_absmax.max()) for site in statistics.values())
    return replace(behind, statistics=statistics, largest=max(behind.largest, seen))
