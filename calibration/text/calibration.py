"""The token windows that statistics are taken on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.text.reading import join_documents, read_text
from spikeexport.calibration.text.tokens import tokenize

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint
    from transformers import PreTrainedModel

SELF = "self"
"""The source that means: text sampled from the model itself."""


def calibration_windows(
    checkpoint: Checkpoint,
    model: PreTrainedModel | None,
    sources: Sequence[str],
    samples: int,
    seqlen: int,
    seed: int,
) -> tuple[np.ndarray, CalibrationInfo]:
    """Makes the calibration windows from one or more sources, which share the samples evenly.

    Args:
        checkpoint: The opened checkpoint.
        model: Its loaded model; only the source `self` needs it.
        sources: Text files, dataset ids, or `self`.
        samples: Number of windows over all sources.
        seqlen: Tokens per window, without BOS or prefix.
        seed: Seed of sampling and of the choice of windows.

    Returns:
        Token ids, int64 [samples, seqlen] without BOS, and what they are.

    Raises:
        CalibrationError: A source is missing, empty or too short, or holds tokens that the model doesn't know.
    """
    _check_request(sources, samples, seqlen)
    shares = np.bincount(window_sources(samples, len(sources)), minlength=len(sources)).tolist()
    parts = [
        _windows_of(checkpoint, model, source, share, seqlen, seed + index)
        for index, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]
    ids = np.concatenate(parts)
    info = CalibrationInfo(
        sources=tuple(_public_name(source) for source in sources),
        samples=samples,
        seqlen=seqlen,
        seed=seed,
        sha256=hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest(),
    )
    return ids, info


def window_sources(samples: int, sources: int) -> np.ndarray:
    """Returns which source each of `samples` windows comes from, int64 [samples]: in order, evenly, first ones more."""
    return np.repeat(np.arange(sources), [samples // sources + (i < samples % sources) for i in range(sources)])


def spread_windows(ids: np.ndarray, samples: int, seqlen: int, seed: int) -> np.ndarray:
    """Cuts `samples` windows out of a text: one from each of as many equal stretches, at a seeded place.

    Args:
        ids: int64 [tokens], at least samples x seqlen of them.
        samples: Number of windows.
        seqlen: Tokens per window.
        seed: Seed of the places.

    Returns:
        int64 [samples, seqlen]; windows don't overlap.
    """
    edges = np.arange(samples + 1) * len(ids) // samples
    slack = np.diff(edges) - seqlen
    starts = edges[:-1] + np.random.default_rng(seed).integers(0, slack + 1)
    return np.stack([ids[start : start + seqlen] for start in starts])


def _windows_of(
    checkpoint: Checkpoint, model: PreTrainedModel | None, source: str, samples: int, seqlen: int, seed: int
) -> np.ndarray:
    if source == SELF:
        from spikeexport.calibration.text.sampled_text import sampled_text

        if model is None:
            raise CalibrationError("Calibration text `self` is sampled from the model, which isn't loaded here.")
        return sampled_text(checkpoint, model, samples, seqlen, seed)
    ids = tokenize(checkpoint.tokenizer(), join_documents(read_text(source)))
    if len(ids) < samples * seqlen:
        raise CalibrationError(
            f"{source} is too short: found {len(ids)} tokens, needed {samples * seqlen} for {samples} windows of "
            f"{seqlen}; give a longer text, or fewer --samples or a smaller --seqlen."
        )
    vocabulary = checkpoint.config.get_text_config().vocab_size
    if ids.max() >= vocabulary:
        raise CalibrationError(
            f"{source}: the tokenizer gives token id {ids.max()}, the model knows {vocabulary} tokens: tokenizer and "
            "weights in the checkpoint do not belong together."
        )
    return spread_windows(ids, samples, seqlen, seed)


def _check_request(sources: Sequence[str], samples: int, seqlen: int) -> None:
    if seqlen < 1 or samples < 1 or not sources:
        raise CalibrationError(
            f"Calibration needs at least one source, one sample and one token (found {len(sources)} sources, {samples} "
            f"samples of {seqlen} tokens)."
        )
    if samples < len(sources):
        raise CalibrationError(
            f"{samples} calibration samples cannot be shared over {len(sources)} sources: give --samples "
            f"{len(sources)} or more."
        )


def _public_name(source: str) -> str:
    """Leaves a file's folders out: they mean nothing on another machine."""
    path = Path(source).expanduser()
    return path.name if path.is_file() else source
