"""`spikeexport compare`: a candidate against a reference on one text, window by window."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.foundation.progress import say
from spikeexport.compare.divergence import WindowDivergence
from spikeexport.compare.generations import compare_generations
from spikeexport.compare.layers import Inside, compare_layers, compare_modules
from spikeexport.compare.noise import noise_floor
from spikeexport.compare.polygraphy_inputs import save_inputs as write_inputs
from spikeexport.compare.result import BehindPrefix, CompareResult, WorstWindow
from spikeexport.compare.saved_outputs import load_outputs as read_outputs
from spikeexport.compare.saved_outputs import outputs_writer, replayed
from spikeexport.compare.thresholds import check_thresholds, failures, require_measured
from spikeexport.compare.windows import compare_windows
from spikeexport.defaults import GENERATIONS, LAYER_WINDOWS, WINDOWS
from spikeexport.evaluation_text import EvaluationText, evaluation_text
from spikeexport.perplexity import perplexity
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.subject import fakequant_parts, open_subject, subject_kind
from spikeexport.runners.torch_runner import TorchRunner
from spikeexport.runners.windows import require_room

_WORST_WINDOWS = 3


def compare(
    candidate: str | Path,
    reference: str | Path,
    text: str | None = None,
    *,
    windows: int | None = WINDOWS,
    seqlen: int | None = None,
    layers: bool = True,
    generations: int = GENERATIONS,
    noise: bool = False,
    html: str | Path | None = None,
    markdown: str | Path | None = None,
    profile: str | Path | None = None,
    engines: Sequence[str | Path] = (),
    save_outputs: str | Path | None = None,
    save_inputs: str | Path | None = None,
    load_outputs: str | Path | None = None,
    fail_above: Mapping[str, float] | None = None,
) -> CompareResult:
    """Compares two subjects on the same windows of a text.

    Args:
        candidate: The SUBJECT to judge.
        reference: The SUBJECT that it should equal, usually the MODEL it was made from.
        text: A TEXT; None = text sampled from the reference.
        windows: How many windows, evenly spaced over the text; None = all.
        seqlen: Tokens per window; None = 512.
        layers: Whether to look inside as well (an .onnx or a PyTorch candidate with a MODEL as reference).
        generations: How many windows' beginnings both continue greedily.
        noise: Whether to measure the noise floor: the candidate again with a perturbation of about 1e-6.
        html: Where to write a report to read.
        markdown: Where to write the same in Markdown.
        profile: A profile of the original, shown in the report.
        engines: Folders that were built from the candidate, whose contents the report shows.
        save_outputs: Where to save both sides' logits for Polygraphy: a .json file, or a folder with one per window.
        save_inputs: Where to save the windows as inputs for `polygraphy run --load-inputs` (an .onnx candidate).
        load_outputs: What Polygraphy or `save_outputs` saved, taken in place of running the candidate (and the
            reference, where its outputs are there too).
        fail_above: Metric -> largest value that passes; what lies above is listed in the result's `failures`.

    Raises:
        UsageError: Unknown metric, subjects with different vocabularies, numbers out of range.
        SpikeExportError: A subject or the text cannot be used; the message says why.
    """
    thresholds = check_thresholds(fail_above or {})
    require_measured(thresholds, noise=noise, layers=layers)
    started = time.monotonic()
    with open_subject(reference) as expected, open_subject(candidate) as found:
        _require_same_vocabulary(expected, found)
        chosen = evaluation_text(expected, text, windows=windows, seqlen=seqlen)
        require_room(found, chosen.ids.shape[1])
        if save_inputs is not None:
            _save_inputs(candidate, found, chosen, Path(save_inputs))
        result = _outside(_sides(expected, found, load_outputs), chosen, save_outputs)
        if load_outputs is None:
            result = dataclasses.replace(
                result,
                generations=compare_generations(expected, found, chosen.ids[:generations]),
                noise=noise_floor(candidate, found, chosen.ids) if noise else None,
            )
        if layers:
            inside = _inside(candidate, found, expected, chosen)
            result = dataclasses.replace(
                result, layers=inside.layers, spikes=inside.spikes, spike_text=inside.spike_text
            )
    result = dataclasses.replace(result, facts=_facts(candidate), seconds=time.monotonic() - started)
    result = dataclasses.replace(result, failures=failures(result.to_json(), thresholds))
    _write_reports(result, html, markdown, profile, engines)
    return result


def _write_reports(
    result: CompareResult,
    html: str | Path | None,
    markdown: str | Path | None,
    profile: str | Path | None,
    engines: Sequence[str | Path],
) -> None:
    if html is None and markdown is None:
        return
    from spikeexport.calibration.records.profile import Profile
    from spikeexport.inspect import inspect
    from spikeexport.report.compare_markdown import write_compare_markdown
    from spikeexport.report.compare_report import Extras, write_compare_report

    known = Profile.load(Path(profile)) if profile is not None else None
    extras = Extras(known, tuple(inspect(engine) for engine in engines))
    if html is not None:
        write_compare_report(result, Path(html), extras)
    if markdown is not None:
        write_compare_markdown(result, Path(markdown), extras)


def _sides(
    reference: CausalRunner, candidate: CausalRunner, load_outputs: str | Path | None
) -> tuple[CausalRunner, CausalRunner]:
    if load_outputs is None:
        return reference, candidate
    path = Path(load_outputs)
    saved = read_outputs(path)
    found = replayed(candidate, path, saved, alone=True)
    others = {name: iterations for name, iterations in saved.items() if name != candidate.name}
    return replayed(reference, path, others, alone=False), found


def _outside(
    sides: tuple[CausalRunner, CausalRunner], text: EvaluationText, save_outputs: str | Path | None
) -> CompareResult:
    """Compares what comes out: predictions of both sides on every window."""
    reference, candidate = sides
    with outputs_writer(Path(save_outputs) if save_outputs is not None else None) as save:
        prefixed = _behind_prefix(reference, candidate)
        compared = compare_windows(reference, candidate, text.ids, prefixed=prefixed, save=save)
    return CompareResult(
        candidate=candidate.name,
        reference=reference.name,
        text=text.source,
        seqlen=text.ids.shape[1],
        windows=tuple(compared.found),
        logits=compared.error,
        layers=(),
        worst_windows=_worst(compared.found, text.ids, reference.tokenizer),
        behind_prefix=BehindPrefix(tuple(compared.behind_prefix)) if prefixed is not None else None,
        facts={},
        seconds=0.0,
    )


def _save_inputs(candidate: str | Path, runner: CausalRunner, text: EvaluationText, path: Path) -> None:
    if subject_kind(candidate) != "onnx":
        raise UsageError("--save-inputs writes the inputs of an .onnx: name one as CANDIDATE.")
    write_inputs(Path(candidate), text.ids, runner.bos_id, path)


def _require_same_vocabulary(reference: CausalRunner, candidate: CausalRunner) -> None:
    sample = "The quick brown fox: 12 naïve ideas.\n"
    same = [list(runner.tokenizer(sample, add_special_tokens=False)["input_ids"]) for runner in (reference, candidate)]
    if reference.vocab_size != candidate.vocab_size or same[0] != same[1]:
        raise UsageError(
            f"{candidate.name} ({candidate.vocab_size} tokens) and {reference.name} ({reference.vocab_size} tokens) do "
            "not share a tokenizer: compare a subject with the model that it was made from."
        )


def _behind_prefix(reference: CausalRunner, candidate: CausalRunner) -> TorchRunner | None:
    if type(reference) is TorchRunner and candidate.prefix_ids and not reference.prefix_ids:
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


def _inside(candidate: str | Path, runner: CausalRunner, reference: CausalRunner, text: EvaluationText) -> Inside:
    windows = text.ids[:LAYER_WINDOWS]
    if type(reference) is TorchRunner and subject_kind(candidate) == "onnx":
        return compare_layers(Path(candidate), reference, windows)
    if type(reference) is TorchRunner and isinstance(runner, TorchRunner):
        return compare_modules(runner, reference, windows)
    say("Error by layer needs an .onnx or a PyTorch candidate with a MODEL as reference: left out.", level=1)
    return Inside()


def _facts(candidate: str | Path) -> dict[str, Any]:
    """Returns what `inspect` tells about an exported or built candidate."""
    kind = subject_kind(candidate)
    if kind == "model":
        return {}
    from spikeexport.inspect import inspect

    parts = fakequant_parts(candidate) if kind == "fakequant" else None
    return inspect(parts[1] if parts else candidate)
