"""A plan inside a PyTorch model, by fake quantisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from spikeexport.calibration.fakequant import Bits, FakeQuantizer
from spikeexport.calibration.forward import KeyValues, prefix_key_values
from spikeexport.calibration.records.plan import Plan, PlanTensors
from spikeexport.calibration.rounding.round_plan import use_codes
from spikeexport.calibration.smoothing.apply import apply_folds, restore
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn


@contextlib.contextmanager
def planned(
    model: nn.Module, structure: DecoderStructure, plan: Plan, tensors: PlanTensors, *, bits: Bits | None = None
) -> Iterator[KeyValues | None]:
    """While active, `model` computes what the exported graph of an INT8 plan would; yields its prefix's cache.

    Args:
        model: Floating point, without folds.
        structure: Its sites.
        plan: What was decided. Excluded linears keep their weight, unless their precision is "w8a16".
        tensors: The plan's tensors.
        bits: Other widths than 8 and 8 are for research: no engine runs them, and scales grow as their step does.

    Raises:
        PlanError: The plan is for another model.
    """
    bits = bits or Bits()
    saved = apply_folds(model, plan.folds, tensors)
    try:
        key_values = prefix_key_values(model, plan.prefix.ids) if plan.prefix else None
        quantizer = FakeQuantizer(model, structure, bits)
        if plan.rounding == "gptq" and bits.weights == 8:
            use_codes(quantizer, plan.int8_weights, tensors)
        step = 127 / (2 ** (bits.activations - 1) - 1)
        scales: dict[str, float | None] = {site.name: site.scale * step for site in plan.sites}
        shifts = {site.name: torch.from_numpy(tensors[site.shift]) for site in plan.sites if site.shift is not None}
        keep = frozenset(exclusion.linear for exclusion in plan.excluded if exclusion.precision != "w8a16")
        with quantizer.active(scales, keep, shifts):
            yield key_values
    finally:
        restore(model, saved)
