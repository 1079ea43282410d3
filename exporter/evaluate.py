"""`spikeexport eval`: perplexity of any subject on a text, by one protocol for all of them, and scores on tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.evaluation_text import EvaluationText, evaluation_text
from spikeexport.perplexity import mean_interval, perplexity, token_nll
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.subject import open_subject
from spikeexport.runners.windows import WindowPredictions, predict_windows, window_batches

if TYPE_CHECKING:
    from spikeexport.tasks.run import TaskScores


@dataclass(frozen=True)
class EvalResult:
    """How well a subject predicts a text, and its scores on tasks.

    Attributes:
        subject: Its name.
        text: The text's name; None where only tasks were asked for.
        window_nll: float64 [N], mean negative log-likelihood per token of each window, in nats; empty without a text.
        tokens: Number of predicted tokens.
        seqlen: Tokens per window.
        seconds: Time of running and scoring the text, without loading.
        tasks: Scores on tasks, or None.
    """

    subject: str
    text: str | None
    window_nll: np.ndarray
    tokens: int
    seqlen: int
    seconds: float
    tasks: TaskScores | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood over all predicted tokens; NaN without a text."""
        return perplexity(float(self.window_nll.mean())) if len(self.window_nll) else math.nan

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `eval --json` prints."""
        return {"subject": self.subject, **self._text_json(), **self._tasks_json()}

    def _text_json(self) -> dict[str, Any]:
        if not len(self.window_nll):
            return {"text": None, "perplexity": None, "tokens": 0, "windows": 0, "seqlen": None}
        return {
            "text": self.text,
            "perplexity": self.perplexity,
            "perplexity_interval": [perplexity(end) for end in mean_interval(self.window_nll)],
            "tokens": self.tokens,
            "windows": len(self.window_nll),
            "seqlen": self.seqlen,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds,
        }

    def _tasks_json(self) -> dict[str, Any]:
        if self.tasks is None:
            return {}
        return {
            "tasks": {name: dict(metrics) for name, metrics in self.tasks.scores.items()},
            "task_samples": dict(self.tasks.samples),
            "task_seconds": self.tasks.seconds,
            "lm_eval": self.tasks.lm_eval,
        }


def evaluate(
    subject: str | Path | CausalRunner,
    text: str | None = None,
    *,
    windows: int | None = None,
    seqlen: int | None = None,
    bos: bool = True,
    tasks: Sequence[str] = (),
    tasks_dir: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    provider: str = "cpu",
) -> EvalResult:
    """Measures perplexity: the text tokenised once, consecutive windows, every token predicted; and scores on tasks.

    Args:
        subject: A SUBJECT, or a runner that stays open.
        text: A TEXT; None = text sampled from the subject itself, or no text where tasks are named.
        windows: How many windows, evenly spaced; None = all of the text.
        seqlen: Tokens per window; None = 512.
        bos: Whether BOS goes in front of each window (a baked prefix takes its place).
        tasks: Tasks, groups or tags of lm-eval.
        tasks_dir: Folder of own tasks and of local data for known ones.
        limit: Questions per task; None = all.
        num_fewshot: Examples in front of each question; None = as the task says.
        provider: Where ONNX Runtime runs an .onnx.

    Raises:
        SpikeExportError: The subject, the text or a task cannot be used; the message says why.
    """
    if not isinstance(subject, CausalRunner):
        with open_subject(subject, provider=provider) as runner:
            return evaluate(
                runner,
                text,
                windows=windows,
                seqlen=seqlen,
                bos=bos,
                tasks=tasks,
                tasks_dir=tasks_dir,
                limit=limit,
                num_fewshot=num_fewshot,
            )
    if not tasks:
        return score_text(subject, evaluation_text(subject, text, windows=windows, seqlen=seqlen), bos=bos)
    from spikeexport.tasks.run import TaskRequest, run_tasks

    folder = Path(tasks_dir) if tasks_dir is not None else None
    scores = run_tasks(subject, TaskRequest(tuple(tasks), folder, limit, num_fewshot))
    if text is None:
        return EvalResult(subject.name, None, np.empty(0), 0, 0, 0.0, scores)
    chosen = evaluation_text(subject, text, windows=windows, seqlen=seqlen)
    return replace(score_text(subject, chosen, bos=bos), tasks=scores)


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
