"""Running token windows through a model behind a BOS or behind a prefix whose KV cache is computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spikeexport.calibration.cache_argument import with_cache
from torch import nn

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer (key, value), each float [1, kv_heads, prefix, head_dim]."""


@dataclass(frozen=True)
class Lead:
    """What stands before every window.

    Attributes:
        bos: Id put in front of each window as an ordinary token, or None.
        prefix: Ids whose cache is computed once and shared by every window (empty: no prefix).
    """

    bos: int | None = None
    prefix: tuple[int, ...] = ()

    @property
    def inline(self) -> tuple[int, ...]:
        """Ids that are part of each window: BOS, unless a prefix takes its place."""
        return () if self.prefix or self.bos is None else (self.bos,)


@torch.inference_mode()
def prefix_key_values(model: nn.Module, prefix: Sequence[int]) -> KeyValues:
    """Runs the prefix once, unquantised, and returns its KV cache (keys after rotary embedding).

    Args:
        model: The model, folds applied.
        prefix: Token ids.

    Returns:
        Per layer (key, value), each [1, kv_heads, len(prefix), head_dim] in the model's dtype.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    model(input_ids=_ids([list(prefix)], model), **with_cache(model, cache), use_cache=True, logits_to_keep=1)
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def windows_with_lead(windows: np.ndarray, lead: Lead) -> np.ndarray:
    """Puts the lead's inline ids in front of each window: int64 [n, L] -> [n, len(inline) + L]."""
    head = np.tile(np.asarray(lead.inline, dtype=np.int64), (len(windows), 1))
    return np.concatenate([head, windows], axis=1)


def run_windows(
    model: nn.Module,
    windows: np.ndarray,
    lead: Lead,
    *,
    batch: int = 4,
    key_values: KeyValues | None = None,
    body_only: bool = False,
    gradients: bool = False,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Runs windows through the model in batches.

    Args:
        model: A causal language model (or its decoder body), with whatever hooks the caller has placed.
        windows: int64 [n, L], without BOS.
        lead: What stands before each window.
        batch: Windows per call.
        key_values: The prefix's cache when it is already known; computed here otherwise.
        body_only: Skips the output head and yields final hidden states.
        gradients: Whether the caller asks for gradients; the outputs then hang on a graph.

    Yields:
        The rows of the batch and logits [b, len(inline) + L, vocabulary] (or hidden states [.., hidden]).
    """
    if lead.prefix and key_values is None:
        key_values = prefix_key_values(model, lead.prefix)
    ids = windows_with_lead(windows, lead)
    runner: Any = model.base_model if body_only else model
    for start in range(0, len(ids), batch):
        rows = slice(start, min(start + batch, len(ids)))
        with contextlib.nullcontext() if gradients else torch.inference_mode():
            past = _past(key_values, rows.stop - rows.start, ids.shape[1], model)
            output = runner(input_ids=_ids(ids[rows], model), **past)
        yield rows, output.last_hidden_state if body_only else output.logits


class _Reached(Exception):
    """The last wanted module has run."""


def _stop(_module: nn.Module, _args: tuple, _output: object) -> None:
    raise _Reached


def run_to_module(
    model: nn.Module,
    last: str,
    windows: np.ndarray,
    lead: Lead,
    *,
    batch: int = 4,
    key_values: KeyValues | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Runs windows as `run_windows` does, no further than the module at path `last`.

    What runs is seen by the caller's hooks alone; `advance` is told the rows of each batch.
    """
    if lead.prefix and key_values is None:
        key_values = prefix_key_values(model, lead.prefix)
    stop = model.get_submodule(last).register_forward_hook(_stop)
    try:
        for start in range(0, len(windows), batch):
            rows = windows[start : start + batch]
            with contextlib.suppress(_Reached):
                for _ in run_windows(model, rows, lead, batch=batch, key_values=key_values, body_only=True):
                    pass
            advance(len(rows))
    finally:
        stop.remove()


def _past(key_values: KeyValues | None, batch: int, length: int, model: nn.Module) -> dict:
    if not key_values:
        return {"use_cache": False}
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(key_values):
        cache.update(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), layer)
    depth = key_values[0][0].shape[2]
    positions = torch.arange(depth, depth + length, device=next(model.parameters()).device)[None].expand(batch, -1)
    return {**with_cache(model, cache), "use_cache": True, "position_ids": positions}


def _ids(rows: Sequence | np.ndarray, model: nn.Module) -> torch.Tensor:
    return torch.as_tensor(np.asarray(rows, dtype=np.int64), device=next(model.parameters()).device)
