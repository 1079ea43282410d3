"""Log-likelihoods of continuations: what multiple-choice and rolling tasks ask of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.windows import left_padded, rows_per_call


@dataclass(frozen=True)
class Continuation:
    """Tokens to be scored behind others.

    Attributes:
        inputs: What is fed: the context and all targets but the last. Empty where a prefix alone stands in front.
        targets: What is predicted; the last row of logits predicts the last one.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is.

    Attributes:
        log_likelihood: Sum over its tokens, in nats.
        greedy: Whether each token is the most likely one.
    """

    log_likelihood: float
    greedy: bool


def score(
    runner: CausalRunner,
    continuations: Sequence[Continuation],
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[Likelihood]:
    """Scores continuations in batches of about one length; equal inputs are run once.

    Args:
        runner: The subject.
        continuations: What to score.
        batch_size: Most sequences of one call; None = what fits the subject and half a gigabyte of logits.
        advance: Told how many continuations were finished.

    Raises:
        SpikeExportError: A token behind a prefix is wanted of a subject that does not keep its prefix's logits.
    """
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, continuation in enumerate(continuations):
        members[continuation.inputs].append(index)
    found: dict[int, Likelihood] = {}
    for batch in _batches(runner, list(members), batch_size):
        longest = max(len(continuations[index].targets) for inputs in batch for index in members[inputs])
        for inputs, logits in zip(batch, _predict(runner, batch, longest == 1), strict=True):
            for index in members[inputs]:
                found[index] = _likelihood(runner, logits, continuations[index].targets)
            advance(len(members[inputs]))
    return [found[index] for index in range(len(continuations))]


def _batches(
    runner: CausalRunner, inputs: list[tuple[int, ...]], batch_size: int | None
) -> Iterator[list[tuple[int, ...]]]:
    """Cuts inputs, longest first, so that what does not fit is seen at once and little is padding."""
    inputs = sorted(inputs, key=lambda ids: (-len(ids), ids))
    start = 0
    while start < len(inputs):
        size = rows_per_call(runner, max(1, len(inputs[start])))
        size = max(1, min(size, batch_size or size))
        yield inputs[start : start + size]
        start += size


def _predict(runner: CausalRunner, batch: list[tuple[int, ...]], last_only: bool) -> Iterator[np.ndarray]:
    """Yields logits float32 [rows, V] of each sequence, its own last row being the last."""
    filled = [ids for ids in batch if ids]
    logits = iter(_run(runner, filled, last_only) if filled else ())
    for ids in batch:
        yield next(logits) if ids else np.empty((0, runner.vocab_size), np.float32)


def _run(runner: CausalRunner, batch: list[tuple[int, ...]], last_only: bool) -> np.ndarray:
    ids, mask = left_padded(batch)
    return runner.prefill(ids, None if mask.all() else mask, last_only=last_only)[0]


def _likelihood(runner: CausalRunner, logits: np.ndarray, targets: tuple[int, ...]) -> Likelihood:
    rows = logits[max(0, len(logits) - len(targets)) :]
    if len(rows) < len(targets):
        rows = np.concatenate([_behind_prefix(runner)[None], rows])
    scores = torch.from_numpy(np.ascontiguousarray(rows))
    wanted = torch.tensor(targets)
    chosen = scores.log_softmax(dim=-1).gather(1, wanted[:, None])
    return Likelihood(float(chosen.sum()), bool((scores.argmax(dim=-1) == wanted).all()))


def _behind_prefix(runner: CausalRunner) -> np.ndarray:
    if runner.prefix_logits is None:
        raise SpikeExportError(
            f"{runner.name} does not keep the logits behind its prefix, which predict a text's first token: "
            "export the model again."
        )
    return runner.prefix_logits
