"""Undoing smoothing's folds where they change a linear's output: rows of up_proj and v_proj are divided by s."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.records.plan import Plan

_TINY = 1e-30


def output_scales(graph: ir.Graph, plan: Plan | None, reference_absmax: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns module path -> s float32 [out], by which the candidate's output is to be multiplied.

    s is the ratio of the rows' absolute maxima before and after the fold: the INT8 scale keeps the latter exactly
    (absmax / 127), so the plan's own vectors are not needed.

    Args:
        graph: The portable graph.
        plan: Its plan, whose folds tell which linears were divided.
        reference_absmax: Module path -> absolute maximum of each row of the checkpoint's weight, float32 [out].
    """
    if plan is None:
        return {}
    divided = [fold.producer for fold in plan.folds if fold.kind in ("up_down", "v_o")]
    return {
        module: reference_absmax[module] / np.maximum(_folded_absmax(graph, module), _TINY)
        for module in divided
        if module in reference_absmax
    }


def folded_producers(plan: Plan | None) -> tuple[str, ...]:
    """Returns the module paths of the linears whose output a fold divides."""
    if plan is None:
        return ()
    return tuple(fold.producer for fold in plan.folds if fold.kind in ("up_down", "v_o"))


def _folded_absmax(graph: ir.Graph, module: str) -> np.ndarray:
    scale = graph.initializers.get(f"{module}.weight_scale")
    if scale is not None and scale.const_value is not None:
        return scale.const_value.numpy().astype(np.float32) * 127
    weight = graph.initializers[f"{module}.weight_t"]
    assert weight.const_value is not None, "a floating-point weight is an initializer"
    return np.abs(weight.const_value.numpy().astype(np.float32)).max(axis=0)
