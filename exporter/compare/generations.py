"""Greedy continuations of both subjects, side by side until they part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from spikeexport.completion import complete
from spikeexport.runners.base import CausalRunner

PROMPT_TOKENS = 32
NEW_TOKENS = 64


@dataclass(frozen=True)
class Generation:
    """One prompt continued by both.

    Attributes:
        prompt: Its text.
        shared: Text that both wrote before they parted.
        shared_tokens: The same in tokens.
        reference: What the reference wrote behind that; empty where they never part.
        candidate: What the candidate wrote behind that.
    """

    prompt: str
    shared: str
    shared_tokens: int
    reference: str
    candidate: str

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "prompt": self.prompt,
            "shared": self.shared,
            "shared_tokens": self.shared_tokens,
            "reference": self.reference,
            "candidate": self.candidate,
        }


def compare_generations(
    reference: CausalRunner, candidate: CausalRunner, windows: np.ndarray
) -> tuple[Generation, ...]:
    """Continues the beginnings of windows int64 [N, S] greedily, each subject behind its own BOS or prefix."""
    if not len(windows):
        return ()
    room = min(runner.max_positions for runner in (reference, candidate)) - 1
    prompts = windows[:, : max(1, min(PROMPT_TOKENS, windows.shape[1] // 2, room // 2))]
    limit = max(1, min(NEW_TOKENS, room - prompts.shape[1]))
    written = [_continue(runner, prompts, limit) for runner in (reference, candidate)]
    return tuple(
        _side_by_side(reference.tokenizer, prompt, expected, found)
        for prompt, expected, found in zip(prompts, *written, strict=True)
    )


def _continue(runner: CausalRunner, prompts: np.ndarray, limit: int) -> list[list[int]]:
    lead = [] if runner.bos_id is None else [runner.bos_id]
    size = runner.max_batch or len(prompts)
    found: list[list[int]] = []
    for start in range(0, len(prompts), size):
        found += complete(runner, [[*lead, *prompt.tolist()] for prompt in prompts[start : start + size]], limit)
    return found


def _side_by_side(tokenizer: Any, prompt: np.ndarray, expected: list[int], found: list[int]) -> Generation:
    pairs = enumerate(zip(expected, found, strict=False))
    part = next((place for place, (a, b) in pairs if a != b), min(len(expected), len(found)))
    shared = tokenizer.decode(expected[:part])
    return Generation(
        prompt=tokenizer.decode(prompt.tolist()),
        shared=shared,
        shared_tokens=part,
        # Decoded whole and cut, so that a word is not torn at the place where they part.
        reference=tokenizer.decode(expected)[len(shared) :],
        candidate=tokenizer.decode(found)[len(shared) :],
    )
