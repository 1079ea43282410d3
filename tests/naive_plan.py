"""A plan without search: absolute maxima of a few windows as scales, given exclusions and prefix, no folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from spikeexport.calibration.checkpoint import Checkpoint, load_model
from spikeexport.calibration.forward import Lead, run_windows
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.records.plan import Exclusion, InputSite, Plan, Prefix
from spikeexport.calibration.structure.sites import discover


def naive_plan(
    checkpoint: Checkpoint,
    model: Any | None = None,
    ids: np.ndarray | None = None,
    *,
    prefix: Sequence[int] = (),
    exclude: Iterable[str] = (),
    precision: str = "w8a16",
    weights: str = "int8",
) -> Plan:
    """Returns a plan with scale = absmax / 127 at each input.

    Args:
        checkpoint: The model.
        model: Its torch model, loaded here when None.
        ids: Calibration windows int64 [n, L]; seeded random ids when None.
        prefix: Ids of the baked prefix.
        exclude: Module paths that stay unquantised.
        precision: Of the excluded linears.
        weights: "int8" or "fp".
    """
    excluded = tuple(exclude)
    model = load_model(checkpoint) if model is None else model
    if ids is None:
        ids = np.random.default_rng(0).integers(3, checkpoint.config.vocab_size, (4, 32))
    found = discover(model).sites if weights == "int8" else ()
    absmax = _absmax_of_inputs(model, [site.name for site in found], ids, tuple(prefix)) if found else {}
    sites = []
    for site in found:
        linears = tuple(linear for linear in site.linears if linear not in excluded)
        if linears:
            sites.append(InputSite(name=linears[0], linears=linears, scale=absmax[site.name] / 127))
    text = checkpoint.tokenizer().decode(list(prefix))
    return Plan(
        model=checkpoint.model_id,
        calibration=CalibrationInfo(sources=("test",), samples=len(ids), seqlen=ids.shape[1], seed=0, sha256="0" * 64),
        prefix=Prefix(ids=tuple(prefix), text=text) if prefix else None,
        folds=(),
        sites=tuple(sites),
        excluded=tuple(Exclusion(linear=linear, precision=precision, why="test") for linear in excluded),
        alpha=None,
        weights=weights,
        decisions={},
    )


def _absmax_of_inputs(model: Any, names: list[str], ids: np.ndarray, prefix: tuple[int, ...]) -> dict[str, float]:
    absmax = dict.fromkeys(names, 0.0)

    def watch(name: str) -> Any:
        def look(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            absmax[name] = max(absmax[name], float(inputs[0].abs().max()))

        return look

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        for _ in run_windows(model, ids, Lead(prefix=prefix), body_only=True):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return absmax
