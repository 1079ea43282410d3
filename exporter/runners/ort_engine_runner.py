"""What `build --backend onnxruntime` wrote, run with its KV cache in place."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.assets import Assets
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.kv_buffer import KvBuffer, KvLayout
from spikeexport.runners.ort_session import SessionSettings, open_session

DECODE_RESERVE = 128
"""Tokens for which room is allocated behind a prompt before the buffer has to grow."""


@dataclass(frozen=True)
class EngineSettings:
    """How the lowered model is run.

    Attributes:
        session: Threads, spinning, prepacking.
        chunk: Most tokens of one prefill step; None = the whole prompt at once.
    """

    session: SessionSettings = field(default_factory=SessionSettings)
    chunk: int | None = None


class EngineCache:
    """The state behind the tokens seen so far; `decode` goes on in place.

    Attributes:
        buffer: Keys and values.
        step: The bound decode step, made when it is first needed.
    """

    def __init__(self, buffer: KvBuffer) -> None:
        self.buffer = buffer
        self.step: DecodeStep | None = None


class OrtEngineRunner(CausalRunner):
    """Runs the lowered graph: rows are prefilled one by one without their padding, decoded together.

    GroupQueryAttention reads a row's tokens from the start of its buffer, so padding on the left never enters: each row
    is prefilled alone at its own length (a prompt is bound by arithmetic, not by reading weights), and in decode every
    row goes on behind its own length.
    """

    def __init__(
        self, model: Path, assets: Assets, prefix: tuple[np.ndarray, ...], settings: EngineSettings | None = None
    ) -> None:
        """Opens the lowered `model`.

        Args:
            model: The lowered .onnx.
            assets: Tokenizer and configuration.
            prefix: Baked prefix, one array [1, kv_heads, P, D] per past input, in the graph's order; or empty.
            settings: How to run.

        Raises:
            BackendError: ONNX Runtime is missing or refuses the file.
        """
        self.settings = settings or EngineSettings()
        self._session = open_session(model, self.settings.session, "all")
        inputs = {value.name: value for value in self._session.get_inputs()}
        names = tuple(name for name in inputs if name.startswith("past_key_values."))
        self._layout = KvLayout(
            names,
            tuple(inputs[name].shape[1] for name in names),
            tuple(inputs[name].shape[3] for name in names),
            prefix,
        )
        self._inputs = frozenset(inputs)
        self._idle: list[KvBuffer] = []
        self.name = model.parent.name
        self.assets = assets
        self.prefix_ids, self.eos_ids = assets.prefix_ids, assets.eos_ids
        self.max_positions, self.vocab_size = assets.max_positions, assets.vocab_size
        self.max_batch = None
        self.prefix_logits = assets.prefix_logits

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The tokenizer that was written beside the model."""
        return self.assets.tokenizer

    @property
    def bos_id(self) -> int | None:  # type: ignore[override]
        """The id to put before a text, or None."""
        return self.assets.bos_id

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, EngineCache]:
        """Runs sequences from the start; see `CausalRunner.prefill`.

        Raises:
            UsageError: The mask has padding elsewhere than on the left, or leaves a row empty.
        """
        batch, width = ids.shape
        lengths = _left_padded_lengths(ids, attention_mask)
        cache = EngineCache(self._take_buffer(batch, width))
        weakref.finalize(cache, self._idle.append, cache.buffer)
        logits = np.zeros((batch, 1 if last_only else width, self.vocab_size), np.float32)
        for row, length in enumerate(lengths):
            behind = logits[row : row + 1] if last_only else logits[row : row + 1, width - length :]
            self._extend_row(cache.buffer, row, ids[row, width - length :], behind)
        return logits, cache

    def decode(self, ids: np.ndarray, cache: EngineCache) -> tuple[np.ndarray, EngineCache]:
        """Runs more tokens behind the cache, in place; see `CausalRunner.decode`."""
        batch, width = ids.shape
        if cache.buffer.make_room(width):
            cache.step = None
        if width > 1:
            logits = np.empty((batch, width, self.vocab_size), np.float32)
            for row in range(batch):
                self._extend_row(cache.buffer, row, ids[row], logits[row : row + 1])
            return logits, cache
        if cache.step is None:
            cache.step = DecodeStep(self._session, cache.buffer, self._inputs, self.vocab_size)
        return cache.step.run(ids), cache

    def close(self) -> None:
        """Releases the session and the buffers."""
        self._session = None
        self._idle.clear()

    def _take_buffer(self, batch: int, tokens: int) -> KvBuffer:
        """Returns an empty buffer: one that a finished cache left behind where it is large enough."""
        for place, buffer in enumerate(self._idle):
            if buffer.batch == batch and buffer.capacity >= self._layout.prefix_length + tokens + 1:
                del self._idle[place]
                buffer.reset()
                return buffer
        self._idle.clear()
        return KvBuffer(self._layout, batch, tokens + DECODE_RESERVE)

    def _extend_row(self, buffer: KvBuffer, row: int, ids: np.ndarray, logits: np.ndarray) -> None:
        """Runs `ids` [S] behind one row, in chunks, and writes the last `logits.shape[1]` positions' logits."""
        chunk = self.settings.chunk or len(ids)
        skipped = len(ids) - logits.shape[1]
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            first = max(skipped - start, 0)
            if first < len(part):
                target = logits[:, start + first - skipped : start + len(part) - skipped]
            else:
                first, target = len(part) - 1, np.empty((1, 1, self.vocab_size), np.float32)
            self._run_row(buffer, row, part, first, target)
            buffer.lengths[row] += len(part)

    def _run_row(self, buffer: KvBuffer, row: int, ids: np.ndarray, first: int, logits: np.ndarray) -> None:
        past = int(buffer.lengths[row])
        total = past + len(ids)
        feeds: dict[str, np.ndarray] = {
            "input_ids": ids[None].astype(np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None] - buffer.layout.prefix_length,
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logits_positions": np.arange(first, len(ids), dtype=np.int64),
        }
        full = None if "logits_positions" in self._inputs else np.empty((1, len(ids), self.vocab_size), np.float32)
        output = logits if full is None else full
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if name in self._inputs:
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        _bind_cache(binding, buffer, buffer.row_pointers(row), 1)
        binding.bind_output("logits", "cpu", 0, np.float32, output.shape, output.ctypes.data)
        self._session.run_with_iobinding(binding)
        if full is not None:
            logits[:] = full[:, first:]


class DecodeStep:
    """One token for every row through one binding that is made once: only the numbers in its buffers change."""

    def __init__(self, session: Any, buffer: KvBuffer, inputs: frozenset[str], vocab_size: int) -> None:
        """Binds ids, lengths, cache and logits of `buffer`'s batch."""
        batch = buffer.batch
        self._session, self._buffer = session, buffer
        self._feeds: dict[str, np.ndarray] = {
            "input_ids": np.zeros((batch, 1), np.int64),
            "position_ids": np.zeros((batch, 1), np.int64),
            "seqlens_k": np.zeros(batch, np.int32),
            "total_sequence_length": np.zeros((), np.int32),
            "logits_positions": np.zeros(1, np.int64),
        }
        self._logits = np.zeros((batch, 1, vocab_size), np.float32)
        self._binding = session.io_binding()
        for name, array in self._feeds.items():
            if name in inputs:
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        _bind_cache(self._binding, buffer, buffer.row_pointers(0), batch)
        self._binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)

    def run(self, ids: np.ndarray) -> np.ndarray:
        """Runs ids int64 [B, 1] and returns logits float32 [B, 1, V]."""
        lengths, feeds = self._buffer.lengths, self._feeds
        feeds["input_ids"][:] = ids
        feeds["position_ids"][:, 0] = lengths - self._buffer.layout.prefix_length
        feeds["seqlens_k"][:] = lengths
        feeds["total_sequence_length"][...] = lengths.max() + 1
        self._session.run_with_iobinding(self._binding)
        lengths += 1
        return self._logits.copy()


def _bind_cache(binding: Any, buffer: KvBuffer, pointers: Any, batch: int) -> None:
    """Binds past and present of every layer to the same memory."""
    for name, array, pointer in zip(buffer.layout.names, buffer.arrays, pointers, strict=True):
        shape = (batch, *array.shape[1:])
        binding.bind_input(name, "cpu", 0, np.float32, shape, pointer)
        binding.bind_output(name.replace("past_key_values.", "present."), "cpu", 0, np.float32, shape, pointer)


def _left_padded_lengths(ids: np.ndarray, mask: np.ndarray | None) -> list[int]:
    """Returns the number of real tokens of each row.

    Raises:
        UsageError: A row is empty, or has padding elsewhere than on the left.
    """
    batch, width = ids.shape
    if mask is None:
        return [width] * batch
    lengths = [int(length) for length in np.asarray(mask).astype(bool).sum(axis=1)]
    for row, length in enumerate(lengths):
        if length == 0 or not np.asarray(mask)[row, width - length :].all():
            raise UsageError(f"Row {row} of the attention mask is empty or not padded on the left: pad on the left.")
    return lengths
