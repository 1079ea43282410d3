"""Choosing and applying the folds of a method: SmoothQuant as published, or all four input kinds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from spikeexport.calibration.input_transform import BLOCK
from spikeexport.calibration.records.plan import Fold, PlanTensors
from spikeexport.calibration.smoothing.apply import fold_point
from spikeexport.calibration.smoothing.points import FoldPoint, FoldPoints
from spikeexport.calibration.smoothing.strength import smoothing_scales
from torch import nn


@dataclass(frozen=True)
class Smoothing:
    """A smoothing method.

    Attributes:
        name: What `--smooth` calls it.
        kinds: Which folds it uses.
        alpha: Migration strength.
        center: Whether s has geometric mean 1.
        shift: Which inputs are centred on zero first (OutlierTune, arXiv 2406.18832); "down" are those of down_proj.
        rotate: Which inputs are rotated (before they are centred); "down" are those of down_proj.
        block: Channels that are rotated together, at most.
        power_of_two: Rounds s to powers of two: the folded model is then bit-exact in floating point.
    """

    name: str
    kinds: frozenset[str]
    alpha: float
    center: bool = True
    power_of_two: bool = False
    shift: Literal["none", "down", "all"] = "none"
    rotate: Literal["none", "down", "all"] = "none"
    block: int = BLOCK


@dataclass(frozen=True)
class SolvedFolds:
    """Folds written into a model, and the statistics that follow from them.

    Attributes:
        folds: For the plan.
        tensors: Their vectors.
        input_scales: Site name -> s spread over the site's input channels, float32 [channels].
        own: Site name -> the fold that serves this input and no other.
    """

    folds: tuple[Fold, ...] = ()
    tensors: PlanTensors = field(default_factory=dict)
    input_scales: dict[str, torch.Tensor] = field(default_factory=dict)
    own: dict[str, Fold] = field(default_factory=dict)

    @property
    def own_scales(self) -> dict[str, torch.Tensor]:
        """Site name -> s [channels] of the fold that serves it alone."""
        return {site: self.input_scales[site] for site in self.own}

    def without(self, sites: Collection[str]) -> SolvedFolds:
        """Returns the folds that are left when `sites` stay unquantised: those that serve one of them alone go."""
        gone = {site: self.own[site].scales for site in sites if site in self.own}
        return SolvedFolds(
            tuple(fold for fold in self.folds if fold.scales not in gone.values()),
            {key: s for key, s in self.tensors.items() if key not in gone.values()},
            {site: s for site, s in self.input_scales.items() if site not in gone},
            {site: fold for site, fold in self.own.items() if site not in gone},
        )


def solve_folds(
    model: nn.Module,
    points: FoldPoints,
    method: Smoothing,
    channel_absmax: Mapping[str, torch.Tensor],
    rotations: Mapping[str, torch.Tensor] | None = None,
) -> SolvedFolds:
    """Computes s for each fold point of the method and writes the folds into the model.

    Folds between linears come first: they change the rows of W_up and W_v, whose columns the norm's fold then weighs.

    Args:
        model: Floating point; changed in place of its parameters.
        points: Where folds hold.
        method: Which folds, how strong.
        channel_absmax: Site name -> max |X_j| before any fold and behind its rotation, float [channels].
        rotations: Site name -> rotation [block, block]; all channels of a block share one s, which commutes with it.
    """
    folds: list[Fold] = []
    tensors: PlanTensors = {}
    input_scales: dict[str, torch.Tensor] = {}
    own: dict[str, Fold] = {}
    chosen = points.of_kinds(method.kinds)
    for point in sorted(chosen, key=lambda point: point.kind == "norm"):
        absmax = torch.stack([channel_absmax[site] for site in point.sites]).amax(0)
        rotation = (rotations or {}).get(point.sites[0])
        s = _solve(model, point, method, absmax, 1 if rotation is None else _block(point, len(rotation)))
        fold_point(model, point, s)
        key = f"{point.producer}.smoothing"
        fold = Fold(kind=point.kind, producer=point.producer, consumers=point.consumers, scales=key, rows=point.rows)
        folds.append(fold)
        tensors[key] = s.numpy()
        input_scales |= dict.fromkeys(point.sites, point.expand(s))
        if len(point.sites) == 1:
            own[point.sites[0]] = fold
    return SolvedFolds(tuple(folds), tensors, input_scales, own)


def _block(point: FoldPoint, block: int) -> int:
    """Returns how many channels of the producer share one s, so that s is constant in each rotated block."""
    whole = point.channels % block == 0 and (point.repeats == 1 or point.group % block == 0)
    return block if whole else point.channels


def _solve(
    model: nn.Module, point: FoldPoint, method: Smoothing, channel_absmax: torch.Tensor, block: int
) -> torch.Tensor:
    weights = [model.get_submodule(path).weight.detach().abs().amax(0) for path in point.consumers]  # type: ignore[operator, union-attr]
    weight_absmax = point.reduce_max(torch.stack(weights).amax(0))
    top, weight_top = (values.view(-1, block).amax(1) for values in (point.reduce_max(channel_absmax), weight_absmax))
    s = smoothing_scales(top, weight_top, method.alpha, center=method.center).repeat_interleave(block)
    return 2.0 ** s.log2().round() if method.power_of_two else s
