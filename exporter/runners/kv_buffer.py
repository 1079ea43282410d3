"""The KV cache as one buffer per layer that ONNX Runtime reads and writes in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRANULE = 256
"""Capacity is allocated in multiples of this many tokens."""


@dataclass(frozen=True)
class KvLayout:
    """Shapes of the cache.

    Attributes:
        names: Names of the graph's past inputs.
        heads: kv_heads of each.
        dims: head_dim of each.
        prefix: Baked prefix [1, kv_heads, P, D] of each, or empty.
    """

    names: tuple[str, ...]
    heads: tuple[int, ...]
    dims: tuple[int, ...]
    prefix: tuple[np.ndarray, ...]

    @property
    def prefix_length(self) -> int:
        """P."""
        return self.prefix[0].shape[2] if self.prefix else 0


class KvBuffer:
    """float32 arrays [B, kv_heads, capacity, D], the first P tokens of every row being the prefix.

    Attributes:
        layout: Shapes and prefix.
        arrays: One per past input.
        lengths: int32 [B]: tokens of each row in the cache, prefix included.
    """

    def __init__(self, layout: KvLayout, batch: int, tokens: int) -> None:
        """Allocates room for `tokens` behind the prefix."""
        self.layout = layout
        capacity = rounded_up(layout.prefix_length + tokens)
        self.arrays = [
            np.zeros((batch, heads, capacity, dim), np.float32)
            for heads, dim in zip(layout.heads, layout.dims, strict=True)
        ]
        for array, prefix in zip(self.arrays, layout.prefix, strict=False):
            array[:, :, : layout.prefix_length] = prefix
        self.lengths = np.full(batch, layout.prefix_length, np.int32)

    @property
    def batch(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row, prefix included."""
        return self.arrays[0].shape[2]

    def make_room(self, tokens: int) -> bool:
        """Grows so that `tokens` more fit behind the longest row; returns whether the arrays moved."""
        needed = int(self.lengths.max()) + tokens
        if needed <= self.capacity:
            return False
        self.arrays = [_grown(array, rounded_up(max(needed, 2 * self.capacity))) for array in self.arrays]
        return True

    def reset(self) -> None:
        """Empties all rows; the prefix stays."""
        self.lengths[:] = self.layout.prefix_length

    def row_pointers(self, row: int) -> Sequence[int]:
        """Returns the address of one row in each array."""
        return [array.ctypes.data + row * array.strides[0] for array in self.arrays]


def rounded_up(tokens: int) -> int:
    """Returns the capacity that is allocated for `tokens`."""
    return -(-tokens // GRANULE) * GRANULE


def _grown(array: np.ndarray, capacity: int) -> np.ndarray:
    batch, heads, used, dim = array.shape
    grown = np.zeros((batch, heads, capacity, dim), array.dtype)
    grown[:, :, :used] = array
    return grown
