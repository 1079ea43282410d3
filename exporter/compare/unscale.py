"""Undoing smoothing's folds: a producer's output is divided by s, its consumers' inputs arrive divided by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.records.plan import Fold, Plan

_TINY = 1e-30


@dataclass(frozen=True)
class Scales:
    """What smoothing's folds multiplied: the candidate's tensors times these are the original's.

    Attributes:
        inputs: Linear -> float32 [in] by which its input is to be multiplied.
        outputs: Linear -> float32 [out] by which its output is to be multiplied.
    """

    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)


def fold_scales(graph: ir.Graph, plan: Plan | None, model: Any) -> Scales:
    """Finds s from the weights on both sides, so that the plan's own vectors are not needed.

    For a linear it is the ratio of its rows' absolute maxima before and after the fold (an INT8 scale keeps the latter
    exactly: absmax / 127), or of their lengths where its input is rotated; for a norm the ratio of its weights.

    Args:
        graph: The portable graph.
        plan: Its plan, whose folds tell which modules were divided.
        model: The original transformers model.
    """
    inputs: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    rotated = {linear for site in (plan.sites if plan is not None else ()) if site.rotation for linear in site.linears}
    folds = [fold for fold in (plan.folds if plan is not None else ()) if _is_known(fold, modules)]
    # A norm's fold multiplies the columns of the linears whose rows the others divide: it has to be known first.
    for fold in sorted(folds, key=lambda fold: fold.kind != "norm"):
        if fold.kind == "norm":
            scale = _norm_scale(graph, fold, modules)
        else:
            known, module = inputs.get(fold.producer), modules[fold.producer]
            scale = _row_scale(graph, fold.producer, module, known, rotated=fold.producer in rotated)
            outputs[fold.producer] = scale
        for consumer in fold.consumers:
            inputs[consumer] = _over_query_heads(scale, fold, modules, modules[consumer].weight.shape[1])
    return Scales(inputs, outputs)


def _is_known(fold: Fold, modules: Mapping[str, Any]) -> bool:
    return all(name in modules for name in (fold.producer, *fold.consumers))


def _row_scale(graph: ir.Graph, producer: str, module: Any, columns: np.ndarray | None, *, rotated: bool) -> np.ndarray:
    """Returns s of a linear's rows; `columns` is what its own input's fold multiplied its columns with."""
    original = module.weight.detach().float().cpu().numpy()
    original = original if columns is None else original * columns
    if rotated:
        return np.linalg.norm(original, axis=1) / np.maximum(_folded_length(graph, producer), _TINY)
    return np.abs(original).max(axis=1) / np.maximum(_folded_absmax(graph, producer), _TINY)


def _folded_length(graph: ir.Graph, module: str) -> np.ndarray:
    codes, scale = (graph.initializers[f"{module}.{name}"].const_value for name in ("weight_q", "weight_scale"))
    assert codes is not None, "a rotated input belongs to an INT8 weight"
    assert scale is not None, "which has a scale"
    return np.linalg.norm(codes.numpy().astype(np.float32), axis=0) * scale.numpy().astype(np.float32)


def _folded_absmax(graph: ir.Graph, module: str) -> np.ndarray:
    scale = graph.initializers.get(f"{module}.weight_scale")
    if scale is not None and scale.const_value is not None:
        return scale.const_value.numpy().astype(np.float32) * 127
    weight = graph.initializers[f"{module}.weight_t"]
    assert weight.const_value is not None, "a floating-point weight is an initializer"
    return np.abs(weight.const_value.numpy().astype(np.float32)).max(axis=0)


def _norm_scale(graph: ir.Graph, fold: Fold, modules: Mapping[str, Any]) -> np.ndarray:
    from spikeexport.calibration.smoothing.apply import norm_offset
    from spikeexport.graphs.passes.fold_smoothing import norm_offset as graph_norm_offset

    value = graph.initializers[f"{fold.producer}.weight"]
    assert value.const_value is not None, "a norm's weight is an initializer"
    norm = modules[fold.producer]
    original = norm.weight.detach().float().cpu().numpy() + np.float32(norm_offset(norm))
    folded = value.const_value.numpy().astype(np.float32) + graph_norm_offset(value)
    # A weight of zero is zero on both sides: nothing is multiplied there.
    return np.where(folded == 0, np.float32(1), original / np.where(folded == 0, np.float32(1), folded))


def _over_query_heads(scale: np.ndarray, fold: Fold, modules: Mapping[str, Any], width: int) -> np.ndarray:
    """Repeats a v -> o fold's vector over the query heads of each group."""
    if fold.kind != "v_o" or len(scale) == width:
        return scale
    head_dim = int(modules[fold.producer.rsplit(".", 1)[0]].head_dim)
    return np.repeat(scale.reshape(-1, head_dim), width // len(scale), axis=0).reshape(-1)
