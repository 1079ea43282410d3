"""`spikeexport eval`: perplexity of any subject on a text, by one protocol for all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.evaluation_text import EvaluationText, evaluation_text
from spikeexport.perplexity import mean_interval, perplexity, token_nll
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.subject import open_subject
from spikeexport.runners.windows import WindowPredictions, predict_windows, window_batches


@dataclass(frozen=True)
class EvalResult:
    """How well a subject predicts a text.

    Attributes:
        subject: Its name.
        text: The text's name.
        window_nll: float64 [N], mean negative log-likelihood per token of each window, in nats.
        tokens: Number of predicted tokens.
        seqlen: Tokens per window.
        seconds: Time of running and scoring, without loading.
    """

    subject: str
    text: str
    window_nll: np.ndarray
    tokens: int
    seqlen: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood over all predicted tokens."""
        return perplexity(float(self.window_nll.mean()))

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `eval --json` prints."""
        return {
            "subject": self.subject,
            "text": self.text,
            "perplexity": self.perplexity,
            "perplexity_interval": [perplexity(end) for end in mean_interval(self.window_nll)],
            "tokens": self.tokens,
            "windows": len(self.window_nll),
            "seqlen": self.seqlen,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds,
        }


def evaluate(
    subject: str | Path | CausalRunner,
    text: str | None = None,
    *,
    windows: int | None = None,
    seqlen: int | None = None,
    bos: bool = True,
    provider: str = "cpu",
) -> EvalResult:
    """Measures perplexity: the text tokenised once, consecutive windows, every token predicted.

    Args:
        subject: A SUBJECT, or a runner that stays open.
        text: A TEXT; None = text sampled from the subject itself.
        windows: How many windows, evenly spaced; None = all of the text.
        seqlen: Tokens per window; None = 512.
        bos: Whether BOS goes in front of each window (a baked prefix takes its place).
        provider: Where ONNX Runtime runs an .onnx.

    Raises:
        SpikeExportError: The subject or the text cannot be used; the message says why.
    """
    if isinstance(subject, CausalRunner):
        return score_text(subject, evaluation_text(subject, text, windows=windows, seqlen=seqlen), bos=bos)
    with open_subject(subject, provider=provider) as runner:
        return score_text(runner, evaluation_text(runner, text, windows=windows, seqlen=seqlen), bos=bos)


def score_text(runner: CausalRunner, text: EvaluationText, *, bos: bool = True) -> EvalResult:
    """Scores windows that are already cut, one small batch in memory at a time."""
    started = time.monotonic()
    window_nll: list[float] = []
    tokens = 0
    with progress_bar(f"Perplexity of {runner.name}", len(text.ids)) as advance:
        for batch in window_batches(runner, text.ids):
            predictions = predict_windows(runner, batch, bos=bos)
            for index, ids in enumerate(batch):
                nll = _token_nll(predictions, index, ids)
                window_nll.append(float(nll.mean()))
                tokens += len(nll)
            advance(len(batch))
    seconds = time.monotonic() - started
    return EvalResult(runner.name, text.source, np.array(window_nll), tokens, text.ids.shape[1], seconds)


def _token_nll(predictions: WindowPredictions, index: int, ids: np.ndarray) -> np.ndarray:
    """Scores one window; the token behind a prefix on its own, which spares a copy of the other logits."""
    nll = token_nll(predictions.logits[index], ids[predictions.skipped :])
    if predictions.lead is None:
        return nll
    return np.concatenate([token_nll(predictions.lead[None], ids[:1]), nll])
