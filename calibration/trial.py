"""One way of quantising a model behind one lead: folds, scales, fake-quantised weights, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from spikeexport.calibration.fakequant import FakeQuantizer
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.quality import Quality, Reference, evaluate
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.smoothing.points import FoldPoints
from spikeexport.calibration.smoothing.solve import Smoothing, SolvedFolds, solve_folds
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn


@dataclass(frozen=True)
class Trial:
    """A quantised model that can be measured with any set of sites left out.

    Attributes:
        lead: What stands before each window.
        key_values: The prefix's cache in the folded model, or None.
        solved: The folds that are written into the model right now.
        scales: Site name -> static scale behind the folds.
        quantizer: Fake-quantised weights.
    """

    lead: Lead
    key_values: KeyValues | None
    solved: SolvedFolds
    scales: dict[str, float]
    quantizer: FakeQuantizer

    def quality(
        self, model: nn.Module, windows: np.ndarray, reference: Reference, excluded: frozenset[str] = frozenset()
    ) -> Quality:
        """Measures the fake-quantised model on `windows` with the inputs of `excluded` sites left unquantised."""
        scales = {site: scale for site, scale in self.scales.items() if site not in excluded}
        with self.quantizer.active(scales):
            return evaluate(model, windows, self.lead, reference=reference, key_values=self.key_values)


def make_trial(
    model: nn.Module,
    structure: DecoderStructure,
    lead: Lead,
    statistics: dict[str, SiteStatistics],
    points: FoldPoints,
    smoothing: Smoothing | None,
) -> Trial:
    """Writes the folds into the model and derives scales from statistics taken before the folds.

    Args:
        model: Floating point; its parameters' data are replaced by the folded ones.
        structure: Its sites.
        lead: The lead that `statistics` were taken behind.
        statistics: Per site.
        points: Where folds hold.
        smoothing: The method, or None for none.

    Raises:
        CalibrationError: A scale would be zero or not finite; the message names the linear.
    """
    absmax = {name: torch.from_numpy(site.channel_absmax) for name, site in statistics.items()}
    solved = solve_folds(model, points, smoothing, absmax) if smoothing else SolvedFolds((), {}, {})
    scales = {site.name: _scale(site.name, absmax[site.name], solved) for site in structure.sites}
    key_values = prefix_key_values(model, lead.prefix) if lead.prefix else None
    say("Quantising the weights…", level=1)
    return Trial(lead, key_values, solved, scales, FakeQuantizer(model, structure))


def _scale(site: str, absmax: torch.Tensor, solved: SolvedFolds) -> float:
    behind = absmax / solved.input_scales[site] if site in solved.input_scales else absmax
    scale = float(behind.max()) / 127
    if not 0 < scale < float("inf"):
        raise CalibrationError(
            f"The input of {site} was {'always zero' if scale == 0 else 'not finite'} during calibration, so that it "
            "has no scale: use other calibration text, or leave it out with --exclude."
        )
    return scale
