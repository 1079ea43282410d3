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
from spikeexport.runners.engine_graphs import Body, EngineFiles, EngineGraphs
from spikeexport.runners.kv_buffer import KvBuffer, KvLayout
from spikeexport.runners.ort_session import SessionSettings

DECODE_RESERVE = 128
"""Tokens for which room is allocated behind a prompt before the buffer has to grow."""


@dataclass(frozen=True)
class EngineSettings:
    """How the lowered model is run.

    Attributes:
        session: Threads, spinning, prepacking.
        chunk: Most tokens of one prefill step: attention costs the square of what runs at once, weights are read
            once per step. Longer prompts are cut into equal parts.
        decode_rows: Most tokens of one step, all sequences together, that the decode form takes.
    """

    session: SessionSettings = field(default_factory=SessionSettings)
    chunk: int = 192
    decode_rows: int = 4


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
            model: The lowered .onnx; the decode form and the head are taken from beside it.
            assets: Tokenizer and configuration.
            prefix: Baked prefix, one array [1, kv_heads, P, D] per past input, in the graph's order; or empty.
            settings: How to run.

        Raises:
            BackendError: ONNX Runtime is missing or refuses the file.
        """
        self.settings = settings or EngineSettings()
        self._graphs = EngineGraphs(EngineFiles.beside(model), self.settings.session, assets.vocab_size)
        past = self._graphs.past_inputs
        heads, dims = zip(*past.values(), strict=True)
        self._layout = KvLayout(tuple(past), heads, dims, prefix)
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
            cache.step = DecodeStep(self._graphs, self._body(batch), cache.buffer, self.vocab_size)
        return cache.step.run(ids), cache

    def close(self) -> None:
        """Releases the sessions and the buffers."""
        del self._graphs
        self._idle.clear()

    def _body(self, rows: int) -> Body:
        """Returns the form that is fastest for that many tokens."""
        return self._graphs.decode if rows <= self.settings.decode_rows else self._graphs.prefill

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
        parts = -(-len(ids) // self.settings.chunk)
        chunk = -(-len(ids) // parts)
        skipped = len(ids) - logits.shape[1]
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            first = max(skipped - start, 0)
            wanted = first < len(part)
            target = logits[:, start + first - skipped : start + len(part) - skipped] if wanted else None
            self._run_row(buffer, row, part, min(first, len(part) - 1), target)
            buffer.lengths[row] += len(part)

    def _run_row(self, buffer: KvBuffer, row: int, ids: np.ndarray, first: int, logits: np.ndarray | None) -> None:
        """Runs `ids` [S] behind one row; positions from `first` on give `logits` [1, S - first, V], None = unwanted."""
        past = int(buffer.lengths[row])
        total = past + len(ids)
        feeds: dict[str, np.ndarray] = {
            "input_ids": ids[None].astype(np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None] - buffer.layout.prefix_length,
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logits_positions": np.arange(first, len(ids), dtype=np.int64),
        }
        body = self._body(len(ids))
        rows = len(ids) - (first if "logits_positions" in body.inputs else 0)
        in_place = logits is not None and body.output == "logits" and rows == logits.shape[1]
        states = logits if in_place else np.empty((1, rows, body.width), np.float32)
        assert states is not None
        binding = body.session.io_binding()
        _bind(binding, body, feeds, states)
        _bind_cache(binding, buffer, buffer.row_pointers(row), 1)
        body.session.run_with_iobinding(binding)
        if logits is None or in_place:
            return
        kept = states[:, rows - logits.shape[1] :]
        head = self._graphs.bind_head(kept, logits)
        if head is None:
            logits[:] = kept
        else:
            self._graphs.run_head(head)


class DecodeStep:
    """One token for every row through one binding that is made once: only the numbers in its buffers change."""

    def __init__(self, graphs: EngineGraphs, body: Body, buffer: KvBuffer, vocab_size: int) -> None:
        """Binds ids, lengths, cache and logits of `buffer`'s batch."""
        batch = buffer.batch
        self._graphs, self._body, self._buffer = graphs, body, buffer
        self._feeds: dict[str, np.ndarray] = {
            "input_ids": np.zeros((batch, 1), np.int64),
            "position_ids": np.zeros((batch, 1), np.int64),
            "seqlens_k": np.zeros(batch, np.int32),
            "total_sequence_length": np.zeros((), np.int32),
            "logits_positions": np.zeros(1, np.int64),
        }
        self._logits = np.zeros((batch, 1, vocab_size), np.float32)
        self._states = self._logits if body.output == "logits" else np.zeros((batch, 1, body.width), np.float32)
        self._binding = body.session.io_binding()
        _bind(self._binding, body, self._feeds, self._states)
        _bind_cache(self._binding, buffer, buffer.row_pointers(0), batch)
        self._head = graphs.bind_head(self._states, self._logits)

    def run(self, ids: np.ndarray) -> np.ndarray:
        """Runs ids int64 [B, 1] and returns logits float32 [B, 1, V]."""
        lengths, feeds = self._buffer.lengths, self._feeds
        feeds["input_ids"][:] = ids
        feeds["position_ids"][:, 0] = lengths - self._buffer.layout.prefix_length
        feeds["seqlens_k"][:] = lengths
        feeds["total_sequence_length"][...] = lengths.max() + 1
        self._body.session.run_with_iobinding(self._binding)
        if self._head is not None:
            self._graphs.run_head(self._head)
        lengths += 1
        return self._logits.copy()


def _bind(binding: Any, body: Body, feeds: dict[str, np.ndarray], states: np.ndarray) -> None:
    """Binds the inputs that `body` has, and its output."""
    for name, array in feeds.items():
        if name in body.inputs:
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output(body.output, "cpu", 0, np.float32, states.shape, states.ctypes.data)


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
