"""The token windows that subjects are judged on: cut from a text, or sampled from the subject itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.foundation.progress import say, track
from spikeexport.defaults import SELF_TEXT, SEQLEN, WINDOWS
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.sampling import Sampler
from spikeexport.runners.windows import require_room


@dataclass(frozen=True)
class EvaluationText:
    """What is predicted.

    Attributes:
        source: What the user named.
        ids: int64 [N, S] token ids without BOS.
    """

    source: str
    ids: np.ndarray


def evaluation_text(
    runner: CausalRunner, source: str | None, *, windows: int | None = None, seqlen: int | None = None, seed: int = 0
) -> EvaluationText:
    """Cuts `source` into windows with the runner's tokenizer, or samples them from the runner.

    Args:
        runner: The subject whose tokenizer (or text) it is.
        source: A TEXT; None = "self".
        windows: How many windows, evenly spaced over the text; None = all of them (16 when sampled).
        seqlen: Tokens per window.
        seed: Seed of the sampling.

    Raises:
        UsageError: A number is out of range.
        CalibrationError: The text is missing, empty or too short for one window.
    """
    seqlen = SEQLEN if seqlen is None else seqlen
    if seqlen < 2 or (windows is not None and windows < 1):
        raise UsageError(f"--seqlen {seqlen} --windows {windows}: give at least 2 tokens and 1 window.")
    require_room(runner, seqlen)
    if source is None or source == SELF_TEXT:
        say(f"Text: sampled from {runner.name} itself (seed {seed}); --text names another one.")
        return EvaluationText(SELF_TEXT, sample_windows(runner, windows or WINDOWS, seqlen, seed))
    from spikeexport.calibration.text import evaluation_windows, join_documents, read_text

    text = join_documents(read_text(source))
    return EvaluationText(source, evaluation_windows(runner.tokenizer, text, seqlen, windows))


def sample_windows(runner: CausalRunner, windows: int, seqlen: int, seed: int) -> np.ndarray:
    """Samples int64 [windows, seqlen] tokens from the runner at temperature 1, each sequence from BOS or the prefix.

    Raises:
        UsageError: The subject has neither BOS nor the logits behind its prefix to start from.
    """
    sampler = Sampler(1.0, seed)
    size = min(windows, runner.max_batch or 16)
    parts = [_sample_batch(runner, min(size, windows - start), seqlen, sampler) for start in range(0, windows, size)]
    return np.concatenate(parts)


def _sample_batch(runner: CausalRunner, batch: int, seqlen: int, sampler: Sampler) -> np.ndarray:
    drawn = np.empty((batch, seqlen), dtype=np.int64)
    cache = None
    logits = None
    if runner.bos_id is not None:
        start = np.full((batch, 1), runner.bos_id, dtype=np.int64)
        logits, cache = runner.prefill(start, last_only=True)
        logits = logits[:, -1]
    elif runner.prefix_logits is not None:
        logits = np.tile(runner.prefix_logits, (batch, 1))
    else:
        raise UsageError(f"{runner.name} has no BOS token to sample text from: name a text with --text.")
    for position in track(range(seqlen), f"Sampling {batch} x {seqlen} tokens from {runner.name}"):
        drawn[:, position] = sampler(logits)
        if position + 1 == seqlen:
            break
        column = drawn[:, position : position + 1]
        step, cache = runner.prefill(column) if cache is None else runner.decode(column, cache)
        logits = step[:, -1]
    return drawn
