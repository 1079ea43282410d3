"""How far two subjects' predictions of one window are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from spikeexport.compare.signal import SignalError, snr_db

_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class WindowDivergence:
    """Differences of one window; every array is float64 [S], one value per predicted token.

    Attributes:
        reference_nll: Negative log-likelihood of the token under the reference, in nats.
        candidate_nll: The same under the candidate.
        kl: KL(reference || candidate) of the next-token distributions, in nats.
        top1: 1 where both put the same token first.
        top5: Share of the reference's five best tokens that are among the candidate's five.
        cosine: Cosine of the two rows of logits.
        signal: Sum of squares of the reference's logits.
        noise: Sum of squares of the logits' difference.
    """

    reference_nll: np.ndarray
    candidate_nll: np.ndarray
    kl: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    cosine: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of the window's logits."""
        return snr_db(float(self.signal.sum()), float(self.noise.sum()))


def window_divergence(
    reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray, logits_error: SignalError
) -> WindowDivergence:
    """Compares two sets of logits, a few rows at a time so that only small temporaries are in memory.

    Args:
        reference: float32 [S, V].
        candidate: float32 [S, V].
        targets: int64 [S], the tokens that really follow.
        logits_error: Gets the raw logits' error added.
    """
    parts: list[np.ndarray] = []
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        errors = logits_error.add(reference[rows], candidate[rows])
        parts.append(np.concatenate([_compare_rows(reference[rows], candidate[rows], targets[rows]), errors]))
    return WindowDivergence(*np.concatenate(parts, axis=1))


def _compare_rows(reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray) -> np.ndarray:
    expected = torch.from_numpy(reference)
    found = torch.from_numpy(candidate)
    column = torch.from_numpy(np.ascontiguousarray(targets))[:, None]
    expected_best = expected.topk(min(5, expected.shape[1]), dim=1).indices
    found_best = found.topk(min(5, found.shape[1]), dim=1).indices
    shared = (expected_best[:, :, None] == found_best[:, None, :]).any(dim=2).double().mean(dim=1)
    expected_log = expected.log_softmax(dim=1)
    found_log = found.log_softmax(dim=1)
    kl = (expected_log.exp() * (expected_log - found_log)).sum(dim=1, dtype=torch.float64).clamp(min=0)
    values = [
        -expected_log.gather(1, column)[:, 0].double(),
        -found_log.gather(1, column)[:, 0].double(),
        kl,
        (expected_best[:, 0] == found_best[:, 0]).double(),
        shared,
    ]
    return torch.stack(values).numpy()
