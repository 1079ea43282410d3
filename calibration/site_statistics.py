"""What was measured at one input site."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Ranges:
    """Largest and smallest value of each channel, float32 [channels]; -inf and inf where nothing was seen."""

    high: np.ndarray
    low: np.ndarray

    @classmethod
    def of(cls, values: torch.Tensor) -> Ranges:
        """Returns the ranges of values [tokens, channels]."""
        return cls(values.amax(0).float().cpu().numpy(), values.amin(0).float().cpu().numpy())

    @classmethod
    def nothing(cls, channels: int) -> Ranges:
        """Returns the ranges that any others replace when they are joined."""
        return cls(np.full(channels, -np.inf, np.float32), np.full(channels, np.inf, np.float32))

    @classmethod
    def symmetric(cls, absmax: np.ndarray) -> Ranges:
        """Returns the ranges from -absmax to absmax [channels]."""
        return cls(absmax, -absmax)

    @property
    def absmax(self) -> np.ndarray:
        """max |x| of each channel, float32 [channels]."""
        return np.maximum(np.abs(self.high), np.abs(self.low))

    @property
    def centre(self) -> np.ndarray:
        """(max + min) / 2 of each channel, float32 [channels]."""
        return (self.high + self.low) / 2

    @property
    def finite(self) -> bool:
        """Whether all values are."""
        return bool(np.isfinite(self.high).all() and np.isfinite(self.low).all())

    def joined(self, other: Ranges) -> Ranges:
        """Returns the ranges that take in both."""
        return Ranges(np.maximum(self.high, other.high), np.minimum(self.low, other.low))


@dataclass(frozen=True)
class SiteStatistics:
    """What one input looked like over all windows.

    Attributes:
        token_absmax: S[n, t] = max over channels of |x|, float32 [windows, tokens] (inline BOS included); NaN where a
            token does not reach the expert that reads the input.
        ranges: Of each channel.
        rotated: Of each channel of the rotated input, where a rotation was asked for.
    """

    token_absmax: np.ndarray
    ranges: Ranges
    rotated: Ranges | None = None

    @property
    def channel_absmax(self) -> np.ndarray:
        """max |x| of each channel, float32 [channels]."""
        return self.ranges.absmax

    @property
    def tokens_seen(self) -> int:
        """How many tokens reached the input."""
        return int(np.isfinite(self.token_absmax).sum())

    def joined(self, other: SiteStatistics) -> SiteStatistics:
        """Returns the statistics over the windows of both, which have as many tokens each."""
        tokens = np.concatenate([self.token_absmax, other.token_absmax])
        return replace(self.widened(other.ranges, other.rotated), token_absmax=tokens)

    def widened(self, ranges: Ranges, rotated: Ranges | None = None) -> SiteStatistics:
        """Returns the statistics with ranges that take in others too."""
        wider = self.rotated if self.rotated is None or rotated is None else self.rotated.joined(rotated)
        return replace(self, ranges=self.ranges.joined(ranges), rotated=wider)
