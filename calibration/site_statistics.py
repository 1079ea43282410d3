"""What was measured at one input site."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SiteStatistics:
    """What one input looked like over all windows.

    Attributes:
        token_absmax: S[n, t] = max over channels of |x|, float32 [windows, tokens] (inline BOS included); NaN where a
            token does not reach the expert that reads the input.
        channel_max: Largest value of each channel, float32 [channels].
        channel_min: Smallest value of each channel, float32 [channels].
    """

    token_absmax: np.ndarray
    channel_max: np.ndarray
    channel_min: np.ndarray

    @property
    def channel_absmax(self) -> np.ndarray:
        """max |x| of each channel, float32 [channels]."""
        return np.maximum(np.abs(self.channel_max), np.abs(self.channel_min))

    @property
    def tokens_seen(self) -> int:
        """How many tokens reached the input."""
        return int(np.isfinite(self.token_absmax).sum())

    def joined(self, other: SiteStatistics) -> SiteStatistics:
        """Returns the statistics over the windows of both, which have as many tokens each."""
        tokens = np.concatenate([self.token_absmax, other.token_absmax])
        return replace(self.widened(other.channel_max, other.channel_min), token_absmax=tokens)

    def widened(self, high: np.ndarray, low: np.ndarray) -> SiteStatistics:
        """Returns the statistics with channel ranges that take in values up to `high` and down to `low` [channels]."""
        return replace(
            self,
            channel_max=np.maximum(self.channel_max, high),
            channel_min=np.minimum(self.channel_min, low),
        )
