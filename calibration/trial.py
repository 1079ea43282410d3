"""One way of quantising a model behind one lead: folds, scales, fake-quantised weights, and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from spikeexport.calibration.fakequant import Bits, FakeQuantizer
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.input_transform import InputTransform, block_for, hadamard
from spikeexport.calibration.quality import Quality, Reference, evaluate
from spikeexport.calibration.rare_experts import with_layer_ranges
from spikeexport.calibration.scales import ScaleRule, clipping_points
from spikeexport.calibration.site_statistics import Ranges, SiteStatistics
from spikeexport.calibration.smoothing.points import FoldPoints
from spikeexport.calibration.smoothing.solve import Smoothing, SolvedFolds, solve_folds
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn


@dataclass(frozen=True)
class Trial:
    """A quantised model that can be measured with any set of sites left out.

    Attributes:
        lead: What stands before each window.
        key_values: The prefix's cache in the folded model, or None.
        solved: The folds that are written into the model right now.
        scales: Site name -> static scale behind the folds.
        quantizer: Fake-quantised weights, and what happens to inputs behind the folds before they are quantised.
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
    *,
    sources: Sequence[np.ndarray] = (),
    rule: ScaleRule | None = None,
    bits: Bits | None = None,
) -> Trial:
    """Writes the folds into the model and derives scales from statistics taken before the folds.

    Args:
        model: Floating point; its parameters' data are replaced by the folded ones.
        structure: Its sites.
        lead: The lead that `statistics` were taken behind.
        statistics: Per site; with the ranges of rotated inputs where the method rotates.
        points: Where folds hold.
        smoothing: The method, or None for none.
        sources: What `statistics` were taken on, by source; a percentile or squared error needs another pass.
        rule: How scales are chosen; None = absmax.
        bits: 8 and 8 when None; anything else is for research.

    Raises:
        CalibrationError: A scale would be zero or not finite; the message names the linear.
    """
    rotations = rotations_of(structure, smoothing)
    statistics = with_layer_ranges(structure, statistics)
    ranges = {name: _ranges(site, name in rotations) for name, site in statistics.items()}
    centres = {name: torch.from_numpy(ranges[name].centre) for name in _shifted(structure, smoothing)}
    absmax = {name: _centred_absmax(seen, centres.get(name)) for name, seen in ranges.items()}
    solved = solve_folds(model, points, smoothing, absmax, rotations) if smoothing else SolvedFolds()
    shifts = {name: behind_folds(name, z, solved) for name, z in centres.items()}
    transforms = _transforms(rotations, shifts)
    tops = {name: float(behind_folds(name, values, solved).max()) for name, values in absmax.items()}
    key_values = prefix_key_values(model, lead.prefix) if lead.prefix else None
    if rule is not None and rule.method != "absmax" and sources:
        tops = clipping_points(
            model, structure, sources, lead, tops, rule, transforms=transforms, key_values=key_values
        )
    bits = bits or Bits()
    scales = {site.name: _scale(site.name, tops[site.name], bits.activations) for site in structure.sites}
    if smoothing and smoothing.shift == "down":
        transforms = _transforms(rotations, {name: _on_grid(z, scales[name]) for name, z in shifts.items()})
    say("Quantising the weights…", level=1)
    quantizer = FakeQuantizer(model, structure, bits, transforms, solved.own_scales)
    return Trial(lead, key_values, solved, scales, quantizer)


def shift_name(site: str) -> str:
    """Returns the key of a site's shift in a plan's tensors."""
    return f"{site}.input_shift"


def rotation_name(block: int) -> str:
    """Returns the key of a rotation in a plan's tensors."""
    return f"rotation.{block}"


def rotations_of(structure: DecoderStructure, smoothing: Smoothing | None) -> dict[str, torch.Tensor]:
    """Returns site name -> rotation [block, block] of the inputs that a method rotates.

    Inputs whose width has no power of two from 16 on as a divisor are left alone.
    """
    if smoothing is None:
        return {}
    chosen = _chosen(structure, smoothing.rotate)
    blocks = {site.name: block_for(site.channels, smoothing.block) for site in chosen}
    matrices = {block: hadamard(block) for block in set(blocks.values()) if block}
    return {name: matrices[block] for name, block in blocks.items() if block}


def _shifted(structure: DecoderStructure, smoothing: Smoothing | None) -> list[str]:
    """Returns the sites whose channels are centred: by z = (max + min) / 2 (arXiv 2406.18832, symmetrisation)."""
    return [site.name for site in _chosen(structure, smoothing.shift if smoothing else "none")]


def _chosen(structure: DecoderStructure, which: Literal["none", "down", "all"]) -> list[Site]:
    return [site for site in structure.sites if which == "all" or (which == "down" and site.role == "down")]


def _transforms(rotations: dict[str, torch.Tensor], shifts: dict[str, torch.Tensor]) -> dict[str, InputTransform]:
    return {name: InputTransform(rotations.get(name), shifts.get(name)) for name in {**rotations, **shifts}}


def _ranges(statistics: SiteStatistics, rotated: bool) -> Ranges:
    if not rotated:
        return statistics.ranges
    assert statistics.rotated is not None, "measured with the method's rotations"
    return statistics.rotated


def _on_grid(z: torch.Tensor, scale: float) -> torch.Tensor:
    """Moves z by half a step at most, so that zero has a code of its own: most products of a GLU are close to it."""
    return torch.round(z / scale) * scale


def _centred_absmax(seen: Ranges, centre: torch.Tensor | None) -> torch.Tensor:
    if centre is None:
        return torch.from_numpy(seen.absmax)
    return torch.maximum(torch.from_numpy(seen.high) - centre, centre - torch.from_numpy(seen.low))


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
