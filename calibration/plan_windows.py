"""The token windows that a plan is fitted on, searched on and judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.options import HELD_OUT, HELD_OUT_TOKENS, SAMPLES, SEQLEN, PlanOptions
from spikeexport.calibration.qfep.choose import SEARCH_TOKENS, SEARCH_WINDOWS
from spikeexport.calibration.records.model_id import CalibrationInfo

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint


@dataclass(frozen=True)
class PlanWindows:
    """Three sets that share no window.

    Attributes:
        fit: int64 [samples, seqlen], which scales and folds are taken from.
        search: int64 [n, L], which prefixes are searched on.
        held_out: int64 [h, L], which choices are checked on.
        info: What `fit` is.
    """

    fit: np.ndarray
    search: np.ndarray
    held_out: np.ndarray
    info: CalibrationInfo


def plan_windows(checkpoint: Checkpoint, model, options: PlanOptions) -> PlanWindows:
    """Reads or samples the calibration text and sets windows aside.

    With nothing but `self` named, choices are checked on prose that the model did not sample (`unseen_windows`).

    Raises:
        CalibrationError: The text cannot be used.
    """
    from spikeexport.calibration.text import calibration_windows
    from spikeexport.calibration.text.calibration import SELF
    from spikeexport.calibration.text.unseen import unseen_windows

    samples, seqlen = options.samples or SAMPLES, options.seqlen or SEQLEN
    aside = max(1, min(HELD_OUT, samples // 4))
    unseen = None
    if set(options.calibration) == {SELF}:
        unseen = unseen_windows(checkpoint, aside + SEARCH_WINDOWS, min(seqlen, HELD_OUT_TOKENS))
    wanted = samples + (aside if unseen is None else 0)
    ids, info = calibration_windows(checkpoint, model, options.calibration, wanted, seqlen, options.seed)
    info = info.model_copy(update={"samples": samples})
    if unseen is not None:
        apart = np.linspace(0, len(unseen) - 1, aside).round().astype(int)
        return PlanWindows(ids, np.delete(unseen, apart, axis=0), unseen[apart], info)
    apart = np.linspace(0, len(ids) - 1, aside).round().astype(int)
    fit = np.delete(ids, apart, axis=0)
    return PlanWindows(fit, fit[:SEARCH_WINDOWS, :SEARCH_TOKENS], ids[apart, :HELD_OUT_TOKENS], info)
