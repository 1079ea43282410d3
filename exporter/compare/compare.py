"""`spikeexport compare`: a candidate against a reference on one text, window by window."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.foundation.progress import progress_bar, say
from spikeexport.compare.divergence import WindowDivergence, window_divergence
from spikeexport.compare.layers import compare_layers
from spikeexport.compare.result import BehindPrefix, CompareResult, WorstWindow
from spikeexport.compare.signal import SignalError
from spikeexport.compare.thresholds import check_thresholds, failures
from spikeexport.defaults import LAYER_WINDOWS, WINDOWS
from spikeexport.evaluation_text import EvaluationText, evaluation_text
from spikeexport.perplexity import perplexity
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.subject import open_subject, subject_kind
from spikeexport.runners.torch_runner import TorchRunner
from spikeexport.runners.windows import WindowPredictions, predict_windows, require_room

_WORST_WINDOWS = 3


def compare(
    candidate: str | Path,
    reference: str | Path,
    text: str | None = None,
    *,
    windows: int | None = WINDOWS,
    seqlen: int | None = None,
    layers: bool = True,
    html: str | Path | None = None,
    profile: str | Path | None = None,
    engines: Sequence[str | Path] = (),
    fail_above: Mapping[str, float] | None = None,
) -> CompareResult:
    """Compares two subjects on the same windows of a text.

    Args:
        candidate: The SUBJECT to judge.
        reference: The SUBJECT that it should equal, usually the MODEL it was made from.
        text: A TEXT; None = text sampled from the reference.
        windows: How many windows, evenly spaced over the text; None = all.
        seqlen: Tokens per window; None = 512.
        layers: Whether to look inside as well (an .onnx candidate with a MODEL as reference).
        html: Where to write a report to read.
        profile: A profile of the original, shown in the report.
        engines: Folders that were built from the candidate, whose contents the report shows.
        fail_above: Metric -> largest value that passes; what lies above is listed in the result's `failures`.

    Raises:
        UsageError: Unknown metric, subjects with different vocabularies, numbers out of range.
        SpikeExportError: A subject or the text cannot be used; the message says why.
    """
    thresholds = check_thresholds(fail_above or {})
    started = time.monotonic()
    with open_subject(reference) as expected, open_subject(candidate) as found:
        _require_same_vocabulary(expected, found)
        chosen = evaluation_text(expected, text, windows=windows, seqlen=seqlen)
        require_room(found, chosen.ids.shape[1])
        result = _compare_logits(expected, found, chosen)
        if layers:
            result = dataclasses.replace(result, layers=_layers(candidate, expected, chosen))
    result = dataclasses.replace(result, facts=_facts(candidate), seconds=time.monotonic() - started)
    result = dataclasses.replace(result, failures=failures(result.to_json(), thresholds))
    if html is not None:
        _write_report(result, Path(html), profile, engines)
    return result


def _write_report(result: CompareResult, html: Path, profile: str | Path | None, engines: Sequence[str | Path]) -> None:
    from spikeexport.calibration.records.profile import Profile
    from spikeexport.inspect import inspect
    from spikeexport.report.compare_report import Extras, write_compare_report

    known = Profile.load(Path(profile)) if profile is not None else None
    write_compare_report(result, html, Extras(known, tuple(inspect(engine) for engine in engines)))


def _require_same_vocabulary(reference: CausalRunner, candidate: CausalRunner) -> None:
    sample = "The quick brown fox: 12 naïve ideas.\n"
    same = [list(runner.tokenizer(sample, add_special_tokens=False)["input_ids"]) for runner in (reference, candidate)]
    if reference.vocab_size != candidate.vocab_size or same[0] != same[1]:
        raise UsageError(
            f"{candidate.name} ({candidate.vocab_size} tokens) and {reference.name} ({reference.vocab_size} tokens) do "
            "not share a tokenizer: compare a subject with the model that it was made from."
        )


def _compare_logits(reference: CausalRunner, candidate: CausalRunner, text: EvaluationText) -> CompareResult:
    prefixed = _behind_prefix(reference, candidate)
    found: list[WindowDivergence] = []
    without_prefix: list[WindowDivergence] = []
    error = SignalError()
    with progress_bar(f"Comparing {candidate.name} with {reference.name}", len(text.ids)) as advance:
        for ids in text.ids:
            window = ids[None]
            answer = predict_windows(candidate, window)
            found.append(_window(predict_windows(reference, window), answer, ids, error))
            if prefixed is not None:
                without_prefix.append(_window(predict_windows(prefixed, window), answer, ids, SignalError()))
            advance()
    return CompareResult(
        candidate=candidate.name,
        reference=reference.name,
        text=text.source,
        seqlen=text.ids.shape[1],
        windows=tuple(found),
        logits=error,
        layers=(),
        worst_windows=_worst(found, text.ids, reference.tokenizer),
        behind_prefix=BehindPrefix(tuple(without_prefix)) if prefixed is not None else None,
        facts={},
        seconds=0.0,
    )


def _window(
    reference: WindowPredictions, candidate: WindowPredictions, ids: np.ndarray, error: SignalError
) -> WindowDivergence:
    """Compares what both sides predict: a subject without BOS and prefix says nothing about the first token."""
    first = max(reference.first, candidate.first)
    return window_divergence(reference.rows(0, first), candidate.rows(0, first), ids[first:], error)


def _behind_prefix(reference: CausalRunner, candidate: CausalRunner) -> TorchRunner | None:
    if isinstance(reference, TorchRunner) and candidate.prefix_ids and not reference.prefix_ids:
        return reference.behind(candidate.prefix_ids)
    return None


def _worst(windows: list[WindowDivergence], ids: np.ndarray, tokenizer: Any) -> tuple[WorstWindow, ...]:
    order = sorted(range(len(windows)), key=lambda index: -windows[index].kl.mean())[:_WORST_WINDOWS]
    return tuple(_worst_window(index, windows[index], ids[index], tokenizer) for index in order)


def _worst_window(index: int, window: WindowDivergence, ids: np.ndarray, tokenizer: Any) -> WorstWindow:
    predicted = ids[len(ids) - len(window.kl) :]
    return WorstWindow(
        index=index,
        kl=float(window.kl.mean()),
        reference_perplexity=perplexity(float(window.reference_nll.mean())),
        candidate_perplexity=perplexity(float(window.candidate_nll.mean())),
        tokens=tuple(tokenizer.decode([int(token)]) for token in predicted),
        token_kl=tuple(float(kl) for kl in window.kl),
    )


def _layers(candidate: str | Path, reference: CausalRunner, text: EvaluationText) -> tuple:
    if subject_kind(candidate) != "onnx" or not isinstance(reference, TorchRunner):
        say("Error by layer needs an .onnx as candidate and a MODEL as reference: left out.", level=1)
        return ()
    return compare_layers(Path(candidate), reference, text.ids[:LAYER_WINDOWS])


def _facts(candidate: str | Path) -> dict[str, Any]:
    """Returns what `inspect` tells about an exported or built candidate."""
    if subject_kind(candidate) == "model":
        return {}
    from spikeexport.inspect import inspect

    return inspect(candidate)
