"""The prefix's KV cache as the folded model would compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.records.plan import Fold, PlanTensors

if TYPE_CHECKING:
    from torch import nn

PrefixArrays = list[tuple[np.ndarray, np.ndarray]]
"""Per layer (key, value), each float32 [1, kv_heads, P, head_dim], keys after rotary embedding."""


def prefix_arrays(
    model: nn.Module, prefix: Sequence[int], folds: Sequence[Fold] = (), tensors: PlanTensors | None = None
) -> PrefixArrays:
    """Runs the prefix once, unquantised, and returns its KV cache.

    Args:
        model: Unfolded, or folded already (then give no folds).
        prefix: Token ids; none gives an empty list.
        folds: Folds to apply to the result: a v -> o fold divides the values, no other fold touches the cache.
        tensors: The folds' vectors.

    Raises:
        PlanError: A fold has another number of channels than the cache.
    """
    if not prefix:
        return []
    from spikeexport.calibration.forward import prefix_key_values

    arrays = [(_float32(key), _float32(value)) for key, value in prefix_key_values(model, prefix)]
    return divide_values(arrays, folds, tensors or {})


def divide_values(arrays: PrefixArrays, folds: Sequence[Fold], tensors: PlanTensors) -> PrefixArrays:
    """Returns the caches of an unfolded model as those of the folded one: a v -> o fold divides the values.

    Args:
        arrays: Per layer (key, value) with axes [.., kv_heads, .., head_dim], 4 in all.
        folds: Folds to apply.
        tensors: The folds' vectors.

    Raises:
        PlanError: A fold has another number of channels than the cache.
    """
    changed = list(arrays)
    for fold in folds:
        if fold.kind == "v_o":
            layer = _layer_of(fold.producer)
            key, value = changed[layer]
            changed[layer] = key, _divided(value, tensors[fold.scales], fold.producer)
    return changed


def _float32(tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _layer_of(producer: str) -> int:
    return next(int(part) for part in producer.split(".") if part.isdigit())


def _divided(value: np.ndarray, scales: np.ndarray, producer: str) -> np.ndarray:
    _, heads, _, head_dim = value.shape
    if scales.size != heads * head_dim:
        raise PlanError(
            f"The fold of {producer} has {scales.size} channels, its cache {heads} heads of {head_dim}: make the plan "
            "again for this model."
        )
    return value / scales.reshape(1, heads, 1, head_dim)
