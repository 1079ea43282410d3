"""Several prompts continued side by side behind one KV cache."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.defaults import MAX_NEW_TOKENS
from spikeexport.generate import GenerateResult, TextStream, prompt_tokens
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.sampling import Sampler
from spikeexport.runners.subject import open_subject
from spikeexport.runners.windows import require_room


def generate_batch(
    subject: str | Path | CausalRunner,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    chat: bool = False,
) -> tuple[GenerateResult, ...]:
    """Continues each prompt until it ends or `max_new_tokens` are there, all rows in one step.

    Args:
        subject: A SUBJECT, or a runner that stays open.
        prompts: Texts; as many at once as the subject's batch allows.
        max_new_tokens: Most tokens to generate per prompt.
        temperature: As for `generate`, like everything below.
        top_k: Sample among the so many likeliest tokens only.
        top_p: Sample among the likeliest tokens that together have this probability only.
        stop: Texts that end a row and are left out of it.
        seed: Seed of the sampling.
        chat: Whether the prompts are users' messages for the tokenizer's chat template.

    Raises:
        UsageError: Numbers out of range, no prompt, an empty one, or no room.
    """
    if max_new_tokens < 1 or not prompts:
        raise UsageError("Give at least one prompt and 1 or more for max_new_tokens.")
    sampler = Sampler(temperature, seed, top_k=top_k, top_p=top_p)
    opened = contextlib.nullcontext(subject) if isinstance(subject, CausalRunner) else open_subject(subject)
    with opened as runner:
        size = runner.max_batch or len(prompts)
        results: list[GenerateResult] = []
        for start in range(0, len(prompts), size):
            rows = [_Row(runner, prompt, chat, tuple(stop)) for prompt in prompts[start : start + size]]
            results += _run(runner, rows, sampler, max_new_tokens)
    return tuple(results)


class _Row:
    """One prompt and what follows it."""

    def __init__(self, runner: CausalRunner, prompt: str, chat: bool, stop: tuple[str, ...]) -> None:
        self.prompt_ids = prompt_tokens(runner, prompt, chat=chat)
        if not self.prompt_ids:
            raise UsageError("A prompt of a batch is empty: give each some text.")
        self._eos_ids = runner.eos_ids
        self.stream = TextStream(runner.tokenizer, stop=stop)
        self.ids: list[int] = []
        self.finished = False

    def add(self, token: int) -> None:
        """Takes the next token, unless the row is finished."""
        if self.finished:
            return
        self.ids.append(token)
        self.finished = token in self._eos_ids or self.stream.add(token)


def _run(runner: CausalRunner, rows: list[_Row], sampler: Sampler, limit: int) -> list[GenerateResult]:
    started = time.monotonic()
    width = max(len(row.prompt_ids) for row in rows)
    require_room(runner, width + limit)
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row.prompt_ids) :], mask[index, width - len(row.prompt_ids) :] = row.prompt_ids, 1
    logits, cache = runner.prefill(ids, mask, last_only=True)
    for count in range(1, limit + 1):
        tokens = sampler(logits[:, -1])
        for row, token in zip(rows, tokens, strict=True):
            row.add(int(token))
        if count == limit or all(row.finished for row in rows):
            break
        # A finished row goes on unseen: leaving it out would copy the cache of all others.
        logits, cache = runner.decode(tokens[:, None], cache)
    for row in rows:
        row.stream.end()
    seconds = time.monotonic() - started
    return [GenerateResult(row.stream.text, tuple(row.ids), len(row.prompt_ids), row.finished, seconds) for row in rows]
