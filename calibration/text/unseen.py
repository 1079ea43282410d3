"""Prose that no model sampled: the reference pages inside Python, to judge choices on when nothing else is given."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.text.tokens import tokenize

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint

UNSEEN = "python-reference"
"""What records call this text."""


def unseen_windows(checkpoint: Checkpoint, count: int, seqlen: int) -> np.ndarray | None:
    """Cuts `count` windows, evenly spaced, out of the language reference that comes with Python.

    Text that a model sampled behind its BOS cannot judge a prefix: its loss is smallest behind BOS by construction.

    Args:
        checkpoint: For its tokenizer.
        count: Windows.
        seqlen: Tokens per window.

    Returns:
        int64 [count, seqlen], or None where this Python comes without its reference or the vocabulary lacks tokens.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return None
    ids = tokenize(checkpoint.tokenizer(), "\n\n".join(topics[name] for name in sorted(topics)))
    windows = len(ids) // seqlen
    if windows < count or ids.max() >= checkpoint.config.get_text_config().vocab_size:
        return None
    return ids[: windows * seqlen].reshape(windows, seqlen)[np.arange(count) * windows // count]
