"""The token windows that a plan is fitted on, searched on and judged on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.options import HELD_OUT, HELD_OUT_TOKENS, SAMPLES, SEQLEN, PlanOptions
from spikeexport.calibration.qfep.choose import SEARCH_TOKENS, SEARCH_WINDOWS
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.text.unseen import UNSEEN, unseen_windows

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint

PROSE = 2
"""Windows of prose that join sampled text, for each one that is held out."""


@dataclass(frozen=True)
class PlanWindows:
    """Three sets that share no window.

    Attributes:
        fit: int64 [samples, seqlen], which scales and folds are taken from.
        search: int64 [n, L], which prefixes are searched on.
        held_out: int64 [h, L], which choices are checked on.
        source: Which of the sources each window of `fit` comes from, int64 [samples].
        info: What `fit` is.
    """

    fit: np.ndarray
    search: np.ndarray
    held_out: np.ndarray
    source: np.ndarray
    info: CalibrationInfo

    def by_source(self) -> list[np.ndarray]:
        """Returns the windows of `fit`, one int64 [n, seqlen] for each source that has any."""
        return [self.fit[self.source == source] for source in np.unique(self.source)]


def plan_windows(checkpoint: Checkpoint, model, options: PlanOptions) -> PlanWindows:
    """Reads or samples the calibration text and sets windows aside.

    With nothing but `self` named, prose that the model did not sample (`unseen_windows`) joins it: scales need the
    maximum over more than one kind of text, and sampled text cannot judge a prefix.

    Raises:
        CalibrationError: The text cannot be used.
    """
    from spikeexport.calibration.text import calibration_windows
    from spikeexport.calibration.text.calibration import SELF, window_sources

    samples, seqlen = options.samples or SAMPLES, options.seqlen or SEQLEN
    aside = max(1, min(HELD_OUT, samples // 4))
    unseen = None
    if set(options.calibration) == {SELF}:
        unseen = unseen_windows(checkpoint, (1 + PROSE) * aside + SEARCH_WINDOWS, seqlen)
    wanted = samples + (aside if unseen is None else 0)
    ids, info = calibration_windows(checkpoint, model, options.calibration, wanted, seqlen, options.seed)
    if unseen is not None:
        return _beside_unseen(ids, unseen, aside, info)
    source = window_sources(wanted, len(options.calibration))
    apart = np.linspace(0, len(ids) - 1, aside).round().astype(int)
    fit = np.delete(ids, apart, axis=0)
    info = info.model_copy(update={"samples": samples})
    return PlanWindows(
        fit, fit[:SEARCH_WINDOWS, :SEARCH_TOKENS], ids[apart, :HELD_OUT_TOKENS], np.delete(source, apart), info
    )


def _beside_unseen(ids: np.ndarray, unseen: np.ndarray, aside: int, info: CalibrationInfo) -> PlanWindows:
    """Deals the prose out: every set gets windows from all over it, `fit` `PROSE` times as many as are held out."""
    order = np.random.default_rng(0).permutation(len(unseen))
    held_out, rest = unseen[order[:aside]], unseen[order[aside:]]
    extra, search = rest[: PROSE * aside], rest[PROSE * aside :]
    fit = np.concatenate([ids, extra])
    digest = hashlib.sha256(np.ascontiguousarray(fit, dtype="<i8").tobytes()).hexdigest()
    info = info.model_copy(update={"sources": (*info.sources, UNSEEN), "samples": len(fit), "sha256": digest})
    source = np.repeat([0, 1], [len(ids), len(extra)])
    return PlanWindows(fit, search[:, :SEARCH_TOKENS], held_out[:, :HELD_OUT_TOKENS], source, info)
