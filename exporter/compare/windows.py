"""Both subjects' predictions of the same windows, one window in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.compare.divergence import WindowDivergence, window_divergence
from spikeexport.compare.saved_outputs import LOGITS, Save
from spikeexport.compare.signal import SignalError
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.windows import WindowPredictions, predict_windows


@dataclass
class ComparedWindows:
    """What a pass over the windows gave.

    Attributes:
        found: Per window, candidate against reference.
        behind_prefix: The same against the reference behind the candidate's prefix; empty without one.
        error: Error of the raw logits.
    """

    found: list[WindowDivergence] = field(default_factory=list)
    behind_prefix: list[WindowDivergence] = field(default_factory=list)
    error: SignalError = field(default_factory=SignalError)


def compare_windows(
    reference: CausalRunner,
    candidate: CausalRunner,
    windows: np.ndarray,
    *,
    prefixed: CausalRunner | None = None,
    save: Save = lambda index, outputs: None,
) -> ComparedWindows:
    """Compares two open subjects on windows int64 [N, S] without BOS.

    Args:
        reference: What should be equalled.
        candidate: What is judged.
        windows: Token ids.
        prefixed: The reference behind the candidate's prefix, or None.
        save: Is given both sides' outputs of each window.
    """
    result = ComparedWindows()
    with progress_bar(f"Comparing {candidate.name} with {reference.name}", len(windows)) as advance:
        for index, ids in enumerate(windows):
            expected, answer = (predict_windows(runner, ids[None]) for runner in (reference, candidate))
            result.found.append(_window(expected, answer, ids, result.error))
            save(index, _outputs((reference, expected), (candidate, answer)))
            if prefixed is not None:
                behind = predict_windows(prefixed, ids[None])
                result.behind_prefix.append(_window(behind, answer, ids, SignalError()))
            advance()
    return result


def _window(
    reference: WindowPredictions, candidate: WindowPredictions, ids: np.ndarray, error: SignalError
) -> WindowDivergence:
    """Compares what both sides predict: a subject without BOS and prefix says nothing about the first token."""
    first = max(reference.first, candidate.first)
    return window_divergence(reference.rows(0, first), candidate.rows(0, first), ids[first:], error)


def _outputs(
    reference: tuple[CausalRunner, WindowPredictions], candidate: tuple[CausalRunner, WindowPredictions]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the logits that each side's graph gave; two sides of one name are told apart.

    Nothing else: Polygraphy compares an output that the other runner lacks with whatever that one has.
    """
    names = [runner.name for runner, _ in (reference, candidate)]
    if names[0] == names[1]:
        names[0] += " (reference)"
    sides = (reference[1], candidate[1])
    return {name: {LOGITS: predictions.logits} for name, predictions in zip(names, sides, strict=True)}
