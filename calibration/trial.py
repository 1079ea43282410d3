"""One way of quantising a model behind one lead: folds, scales, fake-quantised weights, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from spikeexport.calibration.fakequant import Bits, FakeQuantizer
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.quality import Quality, Reference, evaluate
from spikeexport.calibration.scales import ScaleRule, clipping_points
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
        shifts: Site name -> z behind the folds, float32 [channels]; empty without a shift.
    """

    lead: Lead
    key_values: KeyValues | None
    solved: SolvedFolds
    scales: dict[str, float]
    quantizer: FakeQuantizer
    shifts: dict[str, torch.Tensor] = field(default_factory=dict)

    def quality(
        self, model: nn.Module, windows: np.ndarray, reference: Reference, excluded: frozenset[str] = frozenset()
    ) -> Quality:
        """Measures the fake-quantised model on `windows` with the inputs of `excluded` sites left unquantised."""
        scales = {site: scale for site, scale in self.scales.items() if site not in excluded}
        with self.quantizer.active(scales, shifts=self.shifts):
            return evaluate(model, windows, self.lead, reference=reference, key_values=self.key_values)


def make_trial(
    model: nn.Module,
    structure: DecoderStructure,
    lead: Lead,
    statistics: dict[str, SiteStatistics],
    points: FoldPoints,
    smoothing: Smoothing | None,
    *,
    windows: np.ndarray | None = None,
    rule: ScaleRule | None = None,
    bits: Bits | None = None,
) -> Trial:
    """Writes the folds into the model and derives scales from statistics taken before the folds.

    Args:
        model: Floating point; its parameters' data are replaced by the folded ones.
        structure: Its sites.
        lead: The lead that `statistics` were taken behind.
        statistics: Per site.
        points: Where folds hold.
        smoothing: The method, or None for none.
        windows: What `statistics` were taken on; a percentile or squared error needs another pass over them.
        rule: How scales are chosen; None = absmax.
        bits: 8 and 8 when None; anything else is for research.

    Raises:
        CalibrationError: A scale would be zero or not finite; the message names the linear.
    """
    centres = _centres(structure, statistics, smoothing)
    absmax = {name: _centred_absmax(site, centres.get(name)) for name, site in statistics.items()}
    solved = solve_folds(model, points, smoothing, absmax) if smoothing else SolvedFolds((), {}, {})
    shifts = {name: behind_folds(name, z, solved) for name, z in centres.items()}
    tops = {name: float(behind_folds(name, values, solved).max()) for name, values in absmax.items()}
    key_values = prefix_key_values(model, lead.prefix) if lead.prefix else None
    if rule is not None and rule.method != "absmax" and windows is not None:
        tops = clipping_points(model, structure, windows, lead, tops, rule, shifts=shifts, key_values=key_values)
    bits = bits or Bits()
    scales = {site.name: _scale(site.name, tops[site.name], bits.activations) for site in structure.sites}
    if smoothing and smoothing.shift == "down":
        shifts = {name: _on_grid(z, scales[name]) for name, z in shifts.items()}
    say("Quantising the weights…", level=1)
    return Trial(lead, key_values, solved, scales, FakeQuantizer(model, structure, bits), shifts)


def shift_name(site: str) -> str:
    """Returns the key of a site's shift in a plan's tensors."""
    return f"{site}.input_shift"


def _centres(
    structure: DecoderStructure, statistics: dict[str, SiteStatistics], smoothing: Smoothing | None
) -> dict[str, torch.Tensor]:
    """Returns z = (max + min) / 2 of each channel of the shifted inputs (arXiv 2406.18832, symmetrisation)."""
    which = smoothing.shift if smoothing else "none"
    shifted = [site.name for site in structure.sites if which == "all" or (which == "down" and site.role == "down")]
    found = {name: statistics[name] for name in shifted}
    return {name: torch.from_numpy((site.channel_max + site.channel_min) / 2) for name, site in found.items()}


def _on_grid(z: torch.Tensor, scale: float) -> torch.Tensor:
    """Moves z by half a step at most, so that zero has a code of its own: most products of a GLU are close to it."""
    return torch.round(z / scale) * scale


def _centred_absmax(site: SiteStatistics, centre: torch.Tensor | None) -> torch.Tensor:
    if centre is None:
        return torch.from_numpy(site.channel_absmax)
    return torch.maximum(torch.from_numpy(site.channel_max) - centre, centre - torch.from_numpy(site.channel_min))


def behind_folds(site: str, values: torch.Tensor, solved: SolvedFolds) -> torch.Tensor:
    """Returns what a site's values [channels] are once the folds are in the model."""
    return values / solved.input_scales[site] if site in solved.input_scales else values


def _scale(site: str, top: float, bits: int) -> float:
    scale = top / (2 ** (bits - 1) - 1)
    if not 0 < scale < float("inf"):
        raise CalibrationError(
            f"The input of {site} was {'always zero' if scale == 0 else 'not finite'} during calibration, so that it "
            "has no scale: use other calibration text, or leave it out with --exclude."
        )
    return scale
