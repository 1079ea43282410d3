"""A key/value cache that is allocated once for a known length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, written into buffers of full length and seen as views of what is filled.

    A dynamic layer copies the whole cache at each token; a static one attends over its empty part, through a mask
    that keeps grouped-query attention from its fast path.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.filled = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates [batch, kv_heads, length, head_dim] for keys and for values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._all_keys = self._buffer(key_states)
        self._all_values = self._buffer(value_states)
        self.keys, self.values = self._all_keys[:, :, :0], self._all_values[:, :, :0]
        self.is_initialized = True

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, size = states.shape
        return states.new_empty(batch, heads, self.length, size)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [batch, kv_heads, new, head_dim] and returns views of everything filled so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.filled, self.filled + key_states.shape[-2]
        self._all_keys[:, :, start:end] = key_states
        self._all_values[:, :, start:end] = value_states
        self.keys, self.values, self.filled = self._all_keys[:, :, :end], self._all_values[:, :, :end], end
        return self.keys, self.values


def growing_cache(config: PretrainedConfig, length: int) -> DynamicCache:
    """Returns a cache for `length` tokens; layers of another kind (sliding windows) stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_bytes_per_sequence(config: PretrainedConfig, length: int, bytes_per_value: int) -> int:
    """Returns the size of keys and values of `length` tokens over all layers, for one sequence."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_dim * length * bytes_per_value
