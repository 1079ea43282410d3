"""Which tensors a plan needs, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.records.plan import Plan, PlanTensors, code_scales_name, codes_name, kv_scale_name


def needs_tensors(plan: Plan) -> bool:
    """Returns whether a plan refers to tensors at all."""
    transformed = any(site.shift or site.rotation for site in plan.sites)
    return bool(plan.folds or plan.kv_cache or plan.rounding != "nearest" or transformed)


def check_tensors(plan: Plan, tensors: PlanTensors, where: str) -> None:
    """Refuses tensors that are absent, of another shape kind or type, not finite, or scales that are not above zero.

    Raises:
        PlanError: Names `where` and the tensor.
    """
    for name, owner, ndim, positive in _floats(plan):
        vector = tensors.get(name)
        if vector is None or vector.ndim != ndim or vector.dtype != np.float32:
            kind = "vector" if ndim == 1 else "matrix"
            raise PlanError(f"{where}: {name} must be a float32 {kind} for {owner}; save the recipe again.")
        if not np.isfinite(vector).all() or (positive and not (vector > 0).all()):
            wanted = "finite and > 0" if positive else "finite"
            raise PlanError(f"{where}: {name} holds values that are not {wanted}; save the recipe again.")
    for name in dict.fromkeys(site.rotation for site in plan.sites if site.rotation):
        matrix = tensors[name]
        if matrix.shape[0] != matrix.shape[1] or np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() > 1e-4:
            raise PlanError(f"{where}: {name} is not an orthogonal matrix; save the recipe again.")
    for linear in plan.int8_weights if plan.rounding != "nearest" else ():
        codes = tensors.get(codes_name(linear))
        columns = len(tensors[code_scales_name(linear)])
        if codes is None or codes.dtype != np.int8 or codes.ndim != 2 or codes.shape[1] != columns:
            raise PlanError(
                f"{where}: {codes_name(linear)} must be int8 [in, {columns}], the codes of {linear}; save the recipe "
                "again."
            )


def _floats(plan: Plan) -> Iterator[tuple[str, str, int, bool]]:
    """Yields (name, what needs it, dimensions, whether it has to be above zero)."""
    for fold in plan.folds:
        yield fold.scales, f"the fold of {fold.producer}", 1, True
    for site in plan.sites:
        if site.shift is not None:
            yield site.shift, f"the shift of {site.name}", 1, False
        if site.rotation is not None:
            yield site.rotation, f"the rotation of {site.name}", 2, False
    for layer in range(plan.kv_cache.layers if plan.kv_cache else 0):
        for kind in ("key", "value"):
            yield kv_scale_name(layer, kind), "the KV cache", 2, True
    for linear in plan.int8_weights if plan.rounding != "nearest" else ():
        yield code_scales_name(linear), f"the codes of {linear}", 1, True
