"""Writing folds into a PyTorch model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.records.plan import Fold, PlanTensors
from spikeexport.calibration.smoothing.points import FoldPoint
from torch import nn


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float:
    """Returns what a norm adds to its weight before multiplying: 1.0 for Gemma's (1 + w), 0.0 otherwise.

    Found by running the norm with a weight of zeros: a plain norm then gives its bias only.
    """
    weight: Any = norm.weight
    saved = weight.data
    x = torch.linspace(-1.0, 1.0, weight.shape[-1], dtype=weight.dtype, device=weight.device)[None]
    try:
        norm.weight.data = torch.zeros_like(saved)
        spread = norm(x)
        norm.weight.data = torch.full_like(saved, -1.0)
        inverted = norm(x)
    finally:
        norm.weight.data = saved
    return 1.0 if float((inverted - inverted.mean()).abs().max()) < float((spread - spread.mean()).abs().max()) else 0.0


def fold_point(
    model: nn.Module, point: FoldPoint, s: torch.Tensor, saved: dict[str, torch.Tensor] | None = None
) -> None:
    """Divides the producer by s and multiplies the consumers' input columns by it, in place of their parameters.

    Args:
        model: Changed: its parameters' data are replaced (never written into, they may be memory-mapped).
        point: Where.
        s: float [point.channels], positive.
        saved: Receives the replaced data by parameter path, for `restore`.
    """
    saved = {} if saved is None else saved
    producer = model.get_submodule(point.producer)
    if point.kind == "norm":
        offset = norm_offset(producer)
        _replace(producer, point.producer, "weight", lambda w: (w + offset) / s - offset, saved)
    else:
        _replace(producer, point.producer, "weight", lambda w: w / _over_rows(s, point.rows, len(w))[:, None], saved)
    if getattr(producer, "bias", None) is not None:
        _replace(producer, point.producer, "bias", lambda b: b / _over_rows(s, point.rows, len(b)), saved)
    columns = point.expand(s)
    for consumer in point.consumers:
        _replace(model.get_submodule(consumer), consumer, "weight", lambda w: w * columns, saved)


def _over_rows(s: torch.Tensor, rows: tuple[int, int] | None, size: int) -> torch.Tensor:
    """Returns s for every output channel of the producer: 1 where it is not divided."""
    if rows is None:
        return s
    spread = torch.ones(size)
    spread[slice(*rows)] = s
    return spread


def _replace(module: nn.Module, path: str, name: str, change, saved: dict[str, torch.Tensor]) -> None:
    parameter = getattr(module, name)
    saved.setdefault(f"{path}.{name}", parameter.data)
    parameter.data = change(parameter.data.float()).to(parameter.dtype)


def restore(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Puts back the parameter data that `fold_point` replaced."""
    for path, data in saved.items():
        model.get_parameter(path).data = data


def restore_all(model: nn.Module, originals: dict[str, torch.Tensor]) -> None:
    """Puts back every parameter's data from a {parameter path: data} that was taken before folding."""
    for path, parameter in model.named_parameters():
        parameter.data = originals[path]


def apply_folds(model: nn.Module, folds: Iterable[Fold], tensors: PlanTensors) -> dict[str, torch.Tensor]:
    """Applies a plan's folds to a PyTorch model.

    Args:
        model: Changed in place of its parameters.
        folds: The plan's folds.
        tensors: Their vectors.

    Returns:
        The replaced parameter data by path, for `restore`.

    Raises:
        PlanError: A fold names a module that the model lacks, or its vector has another length than the module.
    """
    saved: dict[str, torch.Tensor] = {}
    for fold in folds:
        fold_point(model, point_of(model, fold, tensors), torch.from_numpy(np.asarray(tensors[fold.scales])), saved)
    return saved


def point_of(model: nn.Module, fold: Fold, tensors: PlanTensors) -> FoldPoint:
    """Resolves a fold of a plan against a model.

    Raises:
        PlanError: As for `apply_folds`.
    """
    try:
        producer = model.get_parameter(f"{fold.producer}.weight")
        consumer = model.get_parameter(f"{fold.consumers[0]}.weight")
    except AttributeError as error:
        raise PlanError(
            f"The plan folds {fold.producer} into {fold.consumers[0]}: {error}; is it for another model?"
        ) from None
    channels = len(tensors[fold.scales])
    expected = producer.shape[0] if fold.rows is None else fold.rows[1] - fold.rows[0]
    if channels != expected:
        raise PlanError(f"{fold.scales} has {channels} values, {fold.producer} has {expected} channels: wrong model?")
    columns = consumer.shape[1]
    head_dim = int(getattr(model.get_submodule(fold.producer.rsplit(".", 1)[0]), "head_dim", channels) or channels)
    group = head_dim if fold.kind == "v_o" else channels
    return FoldPoint(
        fold.kind, fold.producer, fold.consumers, (fold.consumers[0],), channels, columns // channels, group, fold.rows
    )
