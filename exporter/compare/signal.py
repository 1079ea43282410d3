"""How much of a tensor survives: signal-to-noise ratio and cosine, accumulated over batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SNR_LIMIT_DB = 200.0
"""Reported for equal tensors in place of infinity, which JSON does not have."""

_TINY = 1e-30


def snr_db(signal: float, noise: float) -> float:
    """Returns 10 log10(signal / noise) of two sums of squares, within ±`SNR_LIMIT_DB`."""
    ratio = max(signal, _TINY) / max(noise, _TINY)
    return max(-SNR_LIMIT_DB, min(SNR_LIMIT_DB, 10 * math.log10(ratio)))


@dataclass
class SignalError:
    """Error of one tensor against a reference, summed over everything that `add` was given.

    Attributes:
        signal: Sum of squares of the reference.
        noise: Sum of squares of the difference.
        cosine_sum: Sum over rows of the cosine between reference and candidate.
        rows: Number of rows (tokens).
        max_abs: Largest absolute difference.
    """

    signal: float = 0.0
    noise: float = 0.0
    cosine_sum: float = 0.0
    rows: int = 0
    max_abs: float = 0.0

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        """Takes two tensors of one shape [..., channels]; the last axis is a row.

        Returns:
            float64 [3, rows]: cosine, sum of squares of the reference and of the difference of each row.
        """
        width = reference.shape[-1]
        expected = reference.reshape(-1, width).astype(np.float32, copy=False)
        found = candidate.reshape(-1, width).astype(np.float32, copy=False)
        difference = found - expected
        signal = np.einsum("ij,ij->i", expected, expected, dtype=np.float64)
        noise = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        cosine = np.einsum("ij,ij->i", expected, found) / np.maximum(norms, _TINY)
        self.signal += float(signal.sum())
        self.noise += float(noise.sum())
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.cosine_sum += float(cosine.sum())
        self.rows += len(expected)
        return np.stack([cosine, signal, noise])

    @property
    def snr_db(self) -> float:
        """10 log10(signal / noise), within ±`SNR_LIMIT_DB`."""
        return snr_db(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Mean cosine over the rows."""
        return self.cosine_sum / max(self.rows, 1)
