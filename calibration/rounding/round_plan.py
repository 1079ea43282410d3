"""Error-compensated codes for every INT8 weight of a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from spikeexport.calibration.fakequant import FakeQuantizer, nearest_codes, weight_scale
from spikeexport.calibration.forward import KeyValues, Lead
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.input_transform import NONE, InputTransform
from spikeexport.calibration.records.plan import PlanTensors, code_scales_name, codes_name
from spikeexport.calibration.rounding.gptq import damped, gptq_codes
from spikeexport.calibration.rounding.moments import site_moments
from spikeexport.calibration.smoothing.solve import SolvedFolds
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn

WINDOWS = 12
"""Calibration windows that moments are taken on."""


def round_with_compensation(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    lead: Lead,
    *,
    transforms: Mapping[str, InputTransform] | None = None,
    key_values: KeyValues | None = None,
) -> PlanTensors:
    """Rounds every decoder weight, in the basis of its rotated input, a few layers at a time.

    Args:
        model: Floating point, folds applied; not changed.
        structure: Its sites.
        windows: int64 [n, L]; `WINDOWS` of them are used, evenly spaced: every kind of text has its part.
        lead: What stands before each window.
        transforms: Site name -> what happens to an input before it is quantised.
        key_values: The prefix's cache when already known.

    Returns:
        Per linear its codes int8 [in, out] and their scales float32 [out] under the names that a plan uses.

    Raises:
        CalibrationError: The moments of an input cannot be inverted; the message names it.
    """
    tensors: PlanTensors = {}
    chosen = np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).round().astype(int)
    few = windows[chosen]
    gathered = site_moments(model, structure, few, lead, key_values=key_values)
    for site, moments in gathered:
        rotate = (transforms or {}).get(site.name, NONE).rotate
        # The moments of x R are R^T M R.
        moments = rotate(rotate(moments).T)
        for linear in site.linears:
            weight = rotate(model.get_submodule(linear).weight.detach().float())  # type: ignore[operator, union-attr]
            try:
                scale = weight_scale(weight)
                codes = gptq_codes(weight, scale, damped(moments))
            except torch.linalg.LinAlgError as error:
                raise CalibrationError(
                    f"The inputs of {site.name} cannot be used for GPTQ ({error}): give more or other calibration "
                    "text, or --rounding nearest."
                ) from error
            tensors |= _named(linear, codes, scale)
    return tensors


def round_left_out(
    sites: Collection[Site], quantizer: FakeQuantizer, solved: SolvedFolds, codes: PlanTensors
) -> PlanTensors:
    """Returns the codes that change when inputs are left unquantised, beside those of `round_with_compensation`.

    Weights that were rounded behind a fold or rotation of their input, which it loses, get their nearest codes. The
    producer that the fold divided keeps its codes: only the scales of its rows grow by s again.

    Args:
        sites: Inputs that are left out.
        quantizer: Of the model with all folds.
        solved: The folds.
        codes: Of all linears, with their scales.
    """
    changed: PlanTensors = {}
    for site in sites:
        for linear in site.linears:
            weight = quantizer.weight_without_own_fold(site, linear)
            if weight is not None:
                scale = weight_scale(weight)
                changed |= _named(linear, nearest_codes(weight, scale).to(torch.int8), scale)
    for fold in (solved.own[site.name] for site in sites if site.name in solved.own):
        name = code_scales_name(fold.producer)
        if name in codes:
            scales = changed.get(name, codes[name]).copy()
            scales[slice(*(fold.rows or (None,)))] *= solved.tensors[fold.scales]
            changed[name] = scales
    return changed


def _named(linear: str, codes: torch.Tensor, scale: torch.Tensor) -> PlanTensors:
    """Returns codes int8 [out, in] and scale [out, 1] as a plan keeps them."""
    return {
        codes_name(linear): np.ascontiguousarray(codes.numpy().T),
        code_scales_name(linear): scale[:, 0].numpy().copy(),
    }


def use_codes(quantizer: FakeQuantizer, linears: Collection[str], tensors: PlanTensors) -> None:
    """Puts codes of `tensors` in the place of a quantizer's own fake-quantised weights."""
    for linear in linears:
        if codes_name(linear) in tensors:
            codes = torch.from_numpy(tensors[codes_name(linear)].T.astype(np.float32))
            quantizer.set_weight(linear, codes * torch.from_numpy(tensors[code_scales_name(linear)])[:, None])
