"""Choosing the next token from logits: the best one, or a seeded sample."""

from __future__ import annotations

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError


class Sampler:
    """Draws one token per row, the same ones for the same seed.

    Args:
        temperature: 0 takes the best token (the first one among equals); larger values sample from
            softmax(logits / temperature).
        seed: Seed of the sampling.
        top_k: Only the so many likeliest tokens may be drawn; None = all.
        top_p: Only the likeliest tokens that together have this probability may be drawn (nucleus sampling).

    Raises:
        UsageError: The temperature is negative or not finite, or `top_k` or `top_p` is out of range.
    """

    def __init__(
        self, temperature: float = 0.0, seed: int = 0, *, top_k: int | None = None, top_p: float = 1.0
    ) -> None:
        if not (np.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"--temperature {temperature}: give 0 (the best token) or a positive number.")
        if top_k is not None and top_k < 1:
            raise UsageError(f"--top-k {top_k}: give 1 or more.")
        if not 0 < top_p <= 1:
            raise UsageError(f"--top-p {top_p}: give a probability above 0 and up to 1.")
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Returns int64 [B] token ids for logits float32 [B, V]."""
        if self._temperature == 0:
            return logits.argmax(axis=-1).astype(np.int64)
        # The Gumbel trick draws from the softmax without computing it, in one pass and without rounding the tail.
        scaled = self._cut(logits.astype(np.float64) / self._temperature)
        return (scaled + self._random.gumbel(size=logits.shape)).argmax(axis=-1).astype(np.int64)

    def _cut(self, scaled: np.ndarray) -> np.ndarray:
        """Returns float64 [B, V] with -inf for the tokens that may not be drawn."""
        if self._top_k is not None and self._top_k < scaled.shape[-1]:
            least = np.partition(scaled, -self._top_k, axis=-1)[:, -self._top_k, None]
            scaled = np.where(scaled >= least, scaled, -np.inf)
        if self._top_p < 1:
            scaled = np.where(_in_nucleus(scaled, self._top_p), scaled, -np.inf)
        return scaled


def _in_nucleus(scaled: np.ndarray, top_p: float) -> np.ndarray:
    """Returns bool [B, V]: the likeliest tokens, as many as it takes to reach probability `top_p`."""
    order = np.argsort(-scaled, axis=-1, kind="stable")
    weights = np.exp(np.take_along_axis(scaled, order, axis=-1) - scaled.max(axis=-1, keepdims=True))
    before = np.cumsum(weights, axis=-1) - weights
    kept = np.zeros(scaled.shape, bool)
    np.put_along_axis(kept, order, before < top_p * weights.sum(axis=-1, keepdims=True), axis=-1)
    return kept
