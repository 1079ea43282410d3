"""Text that was sampled from a model, kept: profiling, exporting and judging the same model take the same text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.checkpoint.gguf_cache import cache_root
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.files import staged_outputs
from spikeexport.calibration.foundation.progress import say, warn

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint
    from transformers import PreTrainedModel

SAMPLER_VERSION = 2
"""Raise it when the same model and seed give other text, so that older text is not used."""

PASSAGE = 64
"""Tokens of one passage; a window holds as many as fit, each from BOS on behind another opening word."""


def sampled_text(checkpoint: Checkpoint, model: PreTrainedModel, samples: int, seqlen: int, seed: int) -> np.ndarray:
    """Returns windows of short passages that the model wrote, from the cache folder where they lie there.

    Many openings matter more than long texts: what a scale has to reach are rare words in their contexts.

    Returns:
        int64 [samples, seqlen].

    Raises:
        CalibrationError: As for `sample_from_model`.
    """
    path = _path(checkpoint, model, samples, seqlen, seed)
    known = _read(path, samples, seqlen)
    if known is not None:
        say(f"Text sampled from the model before: {samples} windows of {seqlen} tokens", level=1)
        return known
    ids = _write_passages(checkpoint, model, samples, seqlen, seed)
    try:
        with staged_outputs(path) as staging, open(staging / path.name, "wb") as stream:
            np.save(stream, ids, allow_pickle=False)
    except SpikeExportError as error:
        warn(f"The sampled text is not kept for the next time: {error}")
    return ids


def _write_passages(checkpoint: Checkpoint, model: PreTrainedModel, samples: int, seqlen: int, seed: int) -> np.ndarray:
    from spikeexport.calibration.text.self_sampling import sample_from_model

    length = min(PASSAGE, seqlen)
    per_window = -(-seqlen // length)
    passages = sample_from_model(checkpoint, model, samples * per_window, length, seed, any_opening=True)
    return passages.reshape(samples, per_window * length)[:, :seqlen].copy()


def _path(checkpoint: Checkpoint, model: PreTrainedModel, samples: int, seqlen: int, seed: int) -> Path:
    key = f"{SAMPLER_VERSION} {checkpoint.model_id.fingerprint} {model.dtype} {samples} {seqlen} {seed}"
    return cache_root() / "sampled" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def _read(path: Path, samples: int, seqlen: int) -> np.ndarray | None:
    try:
        ids = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        warn(f"{path} cannot be read ({error}): the text is sampled again.")
        return None
    if ids.shape != (samples, seqlen) or ids.dtype != np.int64:
        warn(f"{path} holds {ids.dtype} {list(ids.shape)}, expected int64 {[samples, seqlen]}: sampled again.")
        return None
    return ids
