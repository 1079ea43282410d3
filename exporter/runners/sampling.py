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

    Raises:
        UsageError: The temperature is negative or not finite.
    """

    def __init__(self, temperature: float = 0.0, seed: int = 0) -> None:
        if not (np.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"--temperature {temperature}: give 0 (the best token) or a positive number.")
        self._temperature = temperature
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Returns int64 [B] token ids for logits float32 [B, V]."""
        if self._temperature == 0:
            return logits.argmax(axis=-1).astype(np.int64)
        # The Gumbel trick draws from the softmax without computing it, in one pass and without rounding the tail.
        scaled = logits.astype(np.float64) / self._temperature
        return (scaled + self._random.gumbel(size=logits.shape)).argmax(axis=-1).astype(np.int64)
