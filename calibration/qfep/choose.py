"""From a user's wish to a prefix: given tokens, or the best of the searches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from spikeexport.calibration.forward import Lead, windows_with_lead
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.observe import SiteStatistics
from spikeexport.calibration.qfep.candidate import PrefixCandidate
from spikeexport.calibration.qfep.measure import Residue, residue_behind
from spikeexport.calibration.qfep.paper import paper_prefix
from spikeexport.calibration.qfep.prefixquant import prefixquant_prefix
from spikeexport.calibration.qfep.residual import residual_prefix
from spikeexport.calibration.quality import evaluate
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn

SEARCH_WINDOWS = 6
SEARCH_TOKENS = 256


@dataclass(frozen=True)
class MeasuredPrefix:
    """A candidate, the spikes left behind it, and the floating-point loss behind it on held-out windows."""

    candidate: PrefixCandidate
    residue: Residue
    loss: float


@dataclass(frozen=True)
class PrefixSearch:
    """All candidates, the loss behind BOS alone, and the winner (None: no candidate is admissible)."""

    measured: tuple[MeasuredPrefix, ...]
    bos_loss: float
    best: MeasuredPrefix | None

    def describe(self) -> str:
        """Returns one sentence for reports."""
        rows = [
            f"{item.candidate.method} {list(item.candidate.ids)}: worst ratio {item.residue.worst:.1f}, "
            f"loss {item.loss - self.bos_loss:+.4f}"
            for item in self.measured
        ]
        return "; ".join(rows) or "no spike token found"


def search_prefix(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    few: np.ndarray,
    held_out: np.ndarray,
    statistics: dict[str, SiteStatistics],
    bos: int | None,
    bos_loss: float,
) -> PrefixSearch:
    """Runs the paper's search, PrefixQuant's and the residual one, measures each find, and takes the best.

    A prefix is admissible only if the floating-point loss on held-out windows does not rise. Among the admissible
    ones the smallest sum of log ratios over all sites wins.

    Args:
        model: Unquantised, without folds.
        structure: Its sites.
        windows: int64 [n, L], the windows that `statistics` belongs to.
        few: int64 [n, L], a few windows that candidates are tried on.
        held_out: int64 [h, L].
        statistics: S behind BOS on `windows`.
        bos: The BOS id, or None.
        bos_loss: Loss behind BOS on `held_out`.
    """
    ids = windows_with_lead(windows, Lead(bos=bos))
    found = (
        paper_prefix(model, structure, statistics, ids, bos),
        prefixquant_prefix(structure, statistics, ids, bos),
        residual_prefix(model, structure, few, bos),
    )
    measured = tuple(_measure(model, structure, few, held_out, item) for item in _distinct(found))
    admissible = [item for item in measured if item.loss <= bos_loss]
    best = min(admissible, key=lambda item: item.residue.log_ratios, default=None)
    result = PrefixSearch(measured, bos_loss, best)
    say(f"Prefixes: {result.describe()}", level=1)
    return result


def _distinct(found: tuple[PrefixCandidate | None, ...]) -> list[PrefixCandidate]:
    by_ids: dict[tuple[int, ...], PrefixCandidate] = {}
    for candidate in found:
        if candidate is not None:
            known = by_ids.get(candidate.ids)
            method = candidate.method if known is None else f"{known.method}+{candidate.method}"
            by_ids[candidate.ids] = PrefixCandidate(candidate.ids, method)
    return list(by_ids.values())


def _measure(
    model: nn.Module, structure: DecoderStructure, windows: np.ndarray, held_out: np.ndarray, item: PrefixCandidate
) -> MeasuredPrefix:
    lead = Lead(prefix=item.ids)
    residue, _ = residue_behind(model, structure, windows, lead, f"Measuring prefix {list(item.ids)}")
    return MeasuredPrefix(item, residue, evaluate(model, held_out, lead).loss)
