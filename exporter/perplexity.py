"""Negative log-likelihoods of tokens, and the perplexity that follows with its uncertainty over windows."""

from __future__ import annotations

import math

import numpy as np
import torch

CONFIDENCE = 0.95
"""Coverage of the intervals that are reported."""

_RESAMPLES = 2000


def token_nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of each target, float64 [S], in nats.

    Args:
        logits: float32 [S, V].
        targets: int64 [S].
    """
    scores = torch.from_numpy(logits)
    chosen = scores.gather(1, torch.from_numpy(np.ascontiguousarray(targets))[:, None])[:, 0]
    return (scores.logsumexp(dim=-1) - chosen).double().numpy()


def perplexity(mean_nll: float) -> float:
    """Returns exp of a mean negative log-likelihood in nats, `inf` turned into the largest float."""
    return math.exp(min(mean_nll, math.log(1e300)))


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the bootstrap percentile interval of the mean of `values` [N] (one value per window, in nats).

    One value has no spread to resample: both ends are that value.
    """
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(values), size=(_RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[picks].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)
