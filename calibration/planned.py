"""A plan inside a PyTorch model, by fake quantisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from spikeexport.calibration.fakequant import Bits, FakeQuantizer
from spikeexport.calibration.forward import KeyValues, prefix_key_values
from spikeexport.calibration.input_transform import InputTransform
from spikeexport.calibration.records.plan import Plan, PlanTensors
from spikeexport.calibration.rounding.round_plan import use_codes
from spikeexport.calibration.smoothing.apply import apply_folds, restore
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn


@contextlib.contextmanager
def planned(
    model: nn.Module, structure: DecoderStructure, plan: Plan, tensors: PlanTensors, *, bits: Bits | None = None
) -> Iterator[KeyValues | None]:
    """While active, `model` computes what the exported graph of a plan would; yields its prefix's cache.

    Args:
        model: Floating point, without folds.
        structure: Its sites.
        plan: What was decided. Excluded linears keep their weight, unless their precision is "w8a16"; a plan for
            floating point quantises nothing.
        tensors: The plan's tensors.
        bits: Other widths than 8 and 8 are for research: no engine runs them, and scales grow as their step does.

    Raises:
        PlanError: The plan is for another model.
    """
    bits = bits or Bits()
    saved = apply_folds(model, plan.folds, tensors)
    try:
        key_values = prefix_key_values(model, plan.prefix.ids) if plan.prefix else None
        if plan.weights != "int8":
            yield key_values
            return
        quantizer = FakeQuantizer(model, _planned_structure(structure, plan), bits, _transforms(plan, tensors))
        if plan.rounding == "gptq" and bits.weights == 8:
            use_codes(quantizer, plan.int8_weights, tensors)
        step = 127 / (2 ** (bits.activations - 1) - 1)
        scales: dict[str, float | None] = {site.name: site.scale * step for site in plan.sites}
        keep = frozenset(exclusion.linear for exclusion in plan.excluded if exclusion.precision != "w8a16")
        with quantizer.active(scales, keep):
            yield key_values
    finally:
        restore(model, saved)


def _transforms(plan: Plan, tensors: PlanTensors) -> dict[str, InputTransform]:
    def tensor(name: str | None) -> torch.Tensor | None:
        return None if name is None else torch.from_numpy(tensors[name])

    return {site.name: InputTransform(tensor(site.rotation), tensor(site.shift)) for site in plan.sites}


def _planned_structure(structure: DecoderStructure, plan: Plan) -> DecoderStructure:
    """Returns the structure with a site for each of the plan's, and one for the excluded linears of each tensor."""
    by_first = {linear: site for site in plan.sites for linear in site.linears}
    sites: list[Site] = []
    for site in structure.sites:
        found = {by_first[linear].name: by_first[linear] for linear in site.linears if linear in by_first}
        sites += [replace(site, name=one.name, linears=one.linears) for one in found.values()]
        rest = tuple(linear for linear in site.linears if linear not in by_first)
        if rest:
            sites.append(replace(site, name=rest[0], linears=rest))
    return DecoderStructure(structure.layers, tuple(sites))
