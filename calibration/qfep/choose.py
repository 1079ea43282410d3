"""The best prefix of three searches, in the order of its tokens that suits the model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from spikeexport.calibration.forward import Lead, windows_with_lead
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.observe import SiteStatistics
from spikeexport.calibration.qfep.candidate import PrefixCandidate
from spikeexport.calibration.qfep.measure import Residue, residue_behind
from spikeexport.calibration.qfep.paper import paper_prefix
from spikeexport.calibration.qfep.prefixquant import prefixquant_prefix
from spikeexport.calibration.qfep.residual import residual_prefix
from spikeexport.calibration.quality import evaluate, first_token_loss, loss_of_windows
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn

SEARCH_WINDOWS = 6
SEARCH_TOKENS = 256
LOG_RATIOS_TOLERANCE = 0.02
"""Prefixes whose summed log ratios are this close absorb the spikes equally well: the smallest loss decides."""

MOST_REORDERED = 4
"""Tokens of the longest prefix whose orders are all tried."""


@dataclass(frozen=True)
class MeasuredPrefix:
    """A candidate, the spikes left behind it, and the floating-point loss behind it, first tokens included."""

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

    The tokens of the find that absorbs most, and those of PrefixQuant's and the residual search together, are tried in
    another order too: a token spikes at its first occurrence wherever it stands, but what stands last decides how well
    a text's first token is predicted. A prefix is admissible only if the floating-point loss on held-out windows does
    not rise. Among the admissible ones the smallest sum of log ratios over all sites wins, and the smallest loss among
    equals.

    Args:
        model: Unquantised, without folds.
        structure: Its sites.
        windows: int64 [n, L], the windows that `statistics` belongs to.
        few: int64 [n, L], a few windows that candidates are tried on.
        held_out: int64 [h, L].
        statistics: S behind BOS on `windows`.
        bos: The BOS id, or None.
        bos_loss: Loss behind BOS on `held_out`, first tokens included.
    """
    ids = windows_with_lead(windows, Lead(bos=bos))
    found = (
        paper_prefix(model, structure, statistics, ids, bos),
        prefixquant_prefix(structure, statistics, ids, bos),
        residual_prefix(model, structure, few, bos),
    )
    tokens = windows.shape[1]
    measured = [_measure(model, structure, few, held_out, item, tokens) for item in _distinct(found)]
    if measured:
        absorbs = min(measured, key=lambda item: item.residue.log_ratios).candidate
        for other in (reordered(model, absorbs, held_out), reordered(model, _together(found), held_out)):
            if 0 < len(other.ids) <= MOST_REORDERED and all(other.ids != item.candidate.ids for item in measured):
                measured.append(_measure(model, structure, few, held_out, other, tokens))
    result = PrefixSearch(tuple(measured), bos_loss, _best([item for item in measured if item.loss <= bos_loss]))
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


def _together(found: tuple[PrefixCandidate | None, ...]) -> PrefixCandidate:
    """Returns the tokens of all searches but the paper's, whose context token absorbs nothing itself."""
    ids = dict.fromkeys(token for item in found if item and item.method != "paper" for token in item.ids)
    return PrefixCandidate(tuple(ids), "together")


def _best(admissible: list[MeasuredPrefix]) -> MeasuredPrefix | None:
    least = min((item.residue.log_ratios for item in admissible), default=0.0)
    equal = [item for item in admissible if item.residue.log_ratios <= least + LOG_RATIOS_TOLERANCE * abs(least)]
    return min(equal, key=lambda item: item.loss, default=None)


def reordered(model: nn.Module, candidate: PrefixCandidate, held_out: np.ndarray) -> PrefixCandidate:
    """Returns the order of up to `MOST_REORDERED` tokens behind which a text's first token is likeliest."""
    if not 1 < len(candidate.ids) <= MOST_REORDERED:
        return candidate
    losses = {ids: first_token_loss(model, held_out, Lead(prefix=ids)) for ids in permutations(candidate.ids)}
    return PrefixCandidate(min(losses, key=losses.__getitem__), f"{candidate.method} reordered")


def _measure(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    held_out: np.ndarray,
    item: PrefixCandidate,
    tokens: int,
) -> MeasuredPrefix:
    lead = Lead(prefix=item.ids)
    residue, _ = residue_behind(model, structure, windows, lead, f"Measuring prefix {list(item.ids)}")
    loss = evaluate(model, held_out, lead).loss
    return MeasuredPrefix(item, residue, loss_of_windows(loss, first_token_loss(model, held_out, lead), tokens))
