"""Where a model can be rescaled: producer and consumers of each fold, proved by running the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from spikeexport.calibration.records.plan import FoldKind
from spikeexport.calibration.structure.roles import role_of
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn


@dataclass(frozen=True)
class FoldPoint:
    """One place where producer / s and consumers' columns * s cancel.

    Attributes:
        kind: Which of the four input kinds.
        producer: Module path of the norm or linear whose output is divided.
        consumers: Module paths of the linears whose input columns are multiplied.
        sites: Names of the consumers' input sites: one, or one per expert of a mixture.
        channels: Length of s.
        repeats: How often each value of s stands in the consumers' input (query heads per KV head for "v_o").
        group: Width of the block that is repeated (head_dim for "v_o", `channels` otherwise).
        rows: First row of the producer that is divided and the one behind the last; None: all of them.
    """

    kind: FoldKind
    producer: str
    consumers: tuple[str, ...]
    sites: tuple[str, ...]
    channels: int
    repeats: int = 1
    group: int = 0
    rows: tuple[int, int] | None = None

    def expand(self, s: torch.Tensor) -> torch.Tensor:
        """Spreads s [channels] over the consumers' input [channels * repeats]."""
        if self.repeats == 1:
            return s
        return s.view(-1, 1, self.group).expand(-1, self.repeats, -1).reshape(-1)

    def reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        """Takes the maximum of per-input-channel values [channels * repeats] over what shares one s: [channels]."""
        if self.repeats == 1:
            return x
        return x.view(-1, self.repeats, self.group).amax(1).reshape(-1)


@dataclass(frozen=True)
class FoldPoints:
    """The folds that hold in a model, and one sentence for each kind that does not."""

    points: tuple[FoldPoint, ...]
    left_out: tuple[str, ...]

    def of_kinds(self, kinds: frozenset[str]) -> tuple[FoldPoint, ...]:
        """Returns the points of the given kinds."""
        return tuple(point for point in self.points if point.kind in kinds)


def find_fold_points(model: nn.Module, structure: DecoderStructure) -> FoldPoints:
    """Lists the candidates by role and keeps those that leave the model's logits unchanged.

    Each kind is tried at once in every layer with random powers of two as s, which is exact in floating point where
    the fold exists; a kind that changes the logits is left out.

    Args:
        model: Floating-point model; restored before returning.
        structure: Its sites.
    """
    candidates = _norm_candidates(structure)
    candidates += [point for site in structure.sites for point in _candidates(model, structure, site)]
    kept: list[FoldPoint] = []
    left_out: list[str] = []
    kinds: tuple[FoldKind, ...] = ("norm", "up_down", "v_o")
    for kind in kinds:
        points = tuple(point for point in candidates if point.kind == kind)
        if not points:
            left_out.append(f"{kind}: no such pair of modules in {type(model).__name__}")
        elif (change := _change_when_folded(model, points)) > _TOLERANCE:
            left_out.append(f"{kind}: rescaling changes the logits of {type(model).__name__} by {change:.1e}")
        else:
            kept += points
    return FoldPoints(tuple(kept), tuple(left_out))


_TOLERANCE = 1e-4
"""Relative change of the logits under a fold by powers of two: rounding only."""


def _norm_candidates(structure: DecoderStructure) -> list[FoldPoint]:
    """Returns one point per norm: its scale moves into everything that it feeds, all experts and their router."""
    by_norm: dict[str, list[Site]] = {}
    for site in structure.sites:
        if site.norm is not None:
            by_norm.setdefault(site.norm, []).append(site)
    return [
        FoldPoint("norm", norm, structure.fed_by(norm), tuple(site.name for site in sites), sites[0].channels)
        for norm, sites in by_norm.items()
    ]


def _candidates(model: nn.Module, structure: DecoderStructure, site: Site) -> list[FoldPoint]:
    if site.norm is not None:
        return []
    if site.role == "down":
        size = site.channels
        if producer := _neighbour(structure, site, "up"):
            return [FoldPoint("up_down", producer, site.linears, (site.name,), size)]
        if producer := _neighbour(structure, site, "gate_up"):
            return [FoldPoint("up_down", producer, site.linears, (site.name,), size, rows=(size, 2 * size))]
        return []
    if site.role == "attention_output":
        producer = _neighbour(structure, site, "value") or _neighbour(structure, site, "qkv")
        return [] if producer is None else _value_to_output(model, site, producer)
    return []


def _value_to_output(model: nn.Module, site: Site, producer: str) -> list[FoldPoint]:
    outputs = int(model.get_parameter(f"{producer}.weight").shape[0])
    # A fused linear has the queries' rows first, as many as the output reads, and the values' last.
    channels = outputs if role_of(producer) == "value" else (outputs - site.channels) // 2
    rows = None if channels == outputs else (outputs - channels, outputs)
    head_dim = getattr(model.get_submodule(producer.rsplit(".", 1)[0]), "head_dim", None)
    if head_dim is None or channels <= 0 or site.channels % channels or channels % head_dim:
        return []
    repeats = site.channels // channels
    return [FoldPoint("v_o", producer, site.linears, (site.name,), channels, repeats, int(head_dim), rows)]


def _neighbour(structure: DecoderStructure, site: Site, role: str) -> str | None:
    parent = site.name.rsplit(".", 1)[0]
    siblings = (linear for other in structure.in_layer(site.layer) for linear in other.linears)
    return next((path for path in siblings if path.rsplit(".", 1)[0] == parent and role_of(path) == role), None)


@torch.inference_mode()
def _change_when_folded(model: nn.Module, points: tuple[FoldPoint, ...]) -> float:
    from spikeexport.calibration.smoothing.apply import fold_point, restore

    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = torch.arange(8).remainder(vocabulary)[None]
    before = model(input_ids=ids, use_cache=False).logits
    generator = torch.Generator().manual_seed(0)
    saved: dict[str, torch.Tensor] = {}
    try:
        for point in points:
            s = 2.0 ** torch.randint(-2, 3, (point.channels,), generator=generator).float()
            fold_point(model, point, s, saved)
        after = model(input_ids=ids, use_cache=False).logits
    finally:
        restore(model, saved)
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
