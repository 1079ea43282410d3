"""The graphs of a built folder as open sessions: the prefill form, the decode form and the head that both share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.runners.cpu import release_freed_memory
from spikeexport.runners.ort_session import SessionSettings, open_session

DECODE_NAME = "decode.onnx"
"""File name of the decode form beside the model; it reads the model's external data."""

HEAD_NAME = "head.onnx"
"""File name of the head beside the model; it reads the model's external data."""


@dataclass(frozen=True)
class EngineFiles:
    """Where the graphs lie.

    Attributes:
        prefill: The graph for prompts, and for everything where the others are None.
        decode: The graph for single tokens, or None.
        head: From `hidden` to `logits`, or None where the other graphs compute logits themselves.
    """

    prefill: Path
    decode: Path | None = None
    head: Path | None = None

    @classmethod
    def beside(cls, model: Path) -> EngineFiles:
        """Returns what lies beside the prefill graph `model`."""
        decode, head = model.with_name(DECODE_NAME), model.with_name(HEAD_NAME)
        return cls(model, decode if decode.is_file() else None, head if head.is_file() else None)


@dataclass(frozen=True)
class Body:
    """A graph that reads and writes the KV cache.

    Attributes:
        session: ONNX Runtime session.
        inputs: Names of its inputs.
        output: `logits`, or `hidden` where the head is a graph of its own.
        width: Last axis of that output.
    """

    session: Any
    inputs: frozenset[str]
    output: str
    width: int


class EngineGraphs:
    """Open sessions.

    Attributes:
        prefill: The body for prompts.
        decode: The body for few tokens; the same one where there is no decode form.
    """

    def __init__(self, files: EngineFiles, settings: SessionSettings, vocab_size: int) -> None:
        """Opens all graphs.

        Raises:
            BackendError: ONNX Runtime is missing or refuses a file.
        """
        settings = replace(settings, taking_turns=files.decode is not None or files.head is not None)
        # First the one whose weights are re-laid while loading: what that needed for a while is free for the others.
        decode = open_session(files.decode, settings, "all", weight_only=True) if files.decode else None
        release_freed_memory()
        prefill = open_session(files.prefill, settings, "all")
        self._head = open_session(files.head, settings, "all") if files.head else None
        self.prefill = _body(prefill, vocab_size)
        self.decode = _body(decode, vocab_size) if decode is not None else self.prefill

    @property
    def past_inputs(self) -> dict[str, tuple[int, int]]:
        """Returns name of each past input -> (kv_heads, head_dim), in the graph's order."""
        inputs = [value for value in self.prefill.session.get_inputs() if value.name.startswith("past_key_values.")]
        return {value.name: (value.shape[1], value.shape[3]) for value in inputs}

    def bind_head(self, states: np.ndarray, logits: np.ndarray) -> Any:
        """Binds a body's output [B, kept, width] and logits [B, kept, V], both contiguous; None without a head."""
        if self._head is None:
            return None
        binding = self._head.io_binding()
        binding.bind_input("hidden", "cpu", 0, np.float32, states.shape, states.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding

    def run_head(self, binding: Any) -> None:
        """Runs what `bind_head` returned."""
        assert self._head is not None, "bound by bind_head"
        self._head.run_with_iobinding(binding)


def _body(session: Any, vocab_size: int) -> Body:
    inputs = frozenset(value.name for value in session.get_inputs())
    output = next(value for value in session.get_outputs() if value.name in ("logits", "hidden"))
    width = vocab_size if output.name == "logits" else int(output.shape[-1])
    return Body(session, inputs, output.name, width)
