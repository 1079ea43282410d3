"""Feeding token windows to a runner so that every subject predicts the same tokens, with BOS, a prefix or neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.base import CausalRunner

_TOKENS_PER_CALL = 2048
_LOGIT_BYTES_PER_CALL = 512 * 2**20


@dataclass(frozen=True)
class WindowPredictions:
    """Next-token logits for a batch of windows.

    Attributes:
        logits: float32 [B, S - skipped, V]; row t predicts token `skipped + t` of its window.
        skipped: 0 where BOS was fed in front of the windows, 1 where nothing was.
        lead: float32 [V] behind the subject's prefix, which predict the first token of every window; else None.
    """

    logits: np.ndarray
    skipped: int
    lead: np.ndarray | None = None

    @property
    def first(self) -> int:
        """Index of the first token that is predicted."""
        return 0 if self.lead is not None else self.skipped

    def rows(self, index: int, first: int) -> np.ndarray:
        """Returns the logits float32 [S - first, V] of one window that predict its tokens from `first` on."""
        rows = self.logits[index, max(0, first - self.skipped) :]
        return np.concatenate([self.lead[None], rows]) if first < self.skipped and self.lead is not None else rows


def predict_windows(runner: CausalRunner, windows: np.ndarray, *, bos: bool = True) -> WindowPredictions:
    """Predicts every token of each window from the ones before it.

    BOS goes in front of a window where the runner has one; behind a baked prefix the first token is predicted by the
    logits that the subject keeps of its prefix.

    Args:
        runner: The subject.
        windows: int64 [B, S] token ids.
        bos: Whether BOS goes in front; a prefix stays, since it is part of the subject.
    """
    if bos and runner.bos_id is not None:
        column = np.full((len(windows), 1), runner.bos_id, dtype=np.int64)
        logits, _ = runner.prefill(np.concatenate([column, windows[:, :-1]], axis=1))
        return WindowPredictions(logits, 0)
    logits, _ = runner.prefill(windows[:, :-1])
    return WindowPredictions(logits, 1, runner.prefix_logits)


def window_batches(runner: CausalRunner, windows: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts windows [N, S] into batches that fit the subject and keep their logits within half a gigabyte.

    Raises:
        UsageError: A window is longer than the subject takes.
    """
    require_room(runner, windows.shape[1])
    size = rows_per_call(runner, windows.shape[1])
    for start in range(0, len(windows), size):
        yield windows[start : start + size]


def rows_per_call(runner: CausalRunner, tokens: int) -> int:
    """Returns how many sequences of `tokens` fit the subject and keep their logits within half a gigabyte."""
    fitting = min(_TOKENS_PER_CALL // tokens, _LOGIT_BYTES_PER_CALL // (4 * tokens * runner.vocab_size))
    return max(1, min(fitting, runner.max_batch or fitting))


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask int64 [B, S] of sequences that are not empty, padded on the left."""
    width = max(len(ids) for ids in sequences)
    ids = np.zeros((len(sequences), width), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    return ids, mask


def require_room(runner: CausalRunner, tokens: int) -> None:
    """Refuses sequences that do not fit behind the subject's prefix.

    Raises:
        UsageError: `tokens` are more than the subject takes.
    """
    if tokens > runner.max_positions:
        raise UsageError(
            f"{runner.name} takes at most {runner.max_positions} tokens, {tokens} were asked for: "
            "choose shorter sequences, or build it for longer ones."
        )
