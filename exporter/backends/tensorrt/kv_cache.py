"""The KV cache of a running engine: two sets of device buffers that take turns as past and present."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PAST, _PRESENT = "past_key_values.", "present."
_HEADROOM = 1.5


@dataclass(frozen=True)
class CacheEntry:
    """One key or value cache.

    Attributes:
        past: Name of the engine's input.
        present: Name of the engine's output.
        heads: kv_heads.
        head_dim: D.
        dtype: Element type.
    """

    past: str
    present: str
    heads: int
    head_dim: int
    dtype: torch.dtype

    def elements(self, batch: int, tokens: int) -> int:
        """Returns the number of elements of [batch, kv_heads, tokens, D], at least one: an address is always needed."""
        return max(1, batch * self.heads * tokens * self.head_dim)


def present_name(past: str) -> str:
    """Returns the output that continues an input: past_key_values.3.key -> present.3.key."""
    return _PRESENT + past.removeprefix(_PAST)


class DeviceKvCache:
    """Past and present [batch, kv_heads, tokens, D] of every layer; an engine writes the present whole.

    Because a run copies the past into the present anyway, growing costs nothing more: the buffer that is about to be
    written is replaced by a larger one.

    Attributes:
        batch: B.
        tokens: Tokens in the past, padding included.
    """

    def __init__(self, entries: Sequence[CacheEntry], batch: int, device: str) -> None:
        """Makes an empty cache."""
        import torch

        self._entries = tuple(entries)
        self._device = device
        self.batch = batch
        self.tokens = 0
        self._past = [torch.empty(1, dtype=entry.dtype, device=device) for entry in self._entries]
        self._present = [torch.empty(1, dtype=entry.dtype, device=device) for entry in self._entries]

    def make_room(self, new_tokens: int) -> None:
        """Makes the present large enough for the past and `new_tokens` more."""
        import torch

        total = self.tokens + new_tokens
        for index, entry in enumerate(self._entries):
            if self._present[index].numel() < entry.elements(self.batch, total):
                room = entry.elements(self.batch, int(total * _HEADROOM) + 1)
                self._present[index] = torch.empty(room, dtype=entry.dtype, device=self._device)

    def shapes(self) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        """Yields (input name, shape) of the past."""
        for entry in self._entries:
            yield entry.past, (self.batch, entry.heads, self.tokens, entry.head_dim)

    def addresses(self) -> Iterator[tuple[str, int]]:
        """Yields (name, device address) of every past and present."""
        for entry, past, present in zip(self._entries, self._past, self._present, strict=True):
            yield entry.past, past.data_ptr()
            yield entry.present, present.data_ptr()

    def advance(self, new_tokens: int) -> None:
        """Makes the present the past, after a run."""
        self._past, self._present = self._present, self._past
        self.tokens += new_tokens
