"""Small opened models for the calibration tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def load(folder: Path) -> tuple[Any, Any]:
    """Opens a folder and loads its model in FP32."""
    from spikeexport.calibration.checkpoint import load_model, open_checkpoint

    checkpoint = open_checkpoint(folder)
    return checkpoint, load_model(checkpoint)


def text_windows(checkpoint: Any, text: str, samples: int, seqlen: int) -> np.ndarray:
    """Cuts consecutive windows of real text."""
    ids = checkpoint.tokenizer()(text, add_special_tokens=False).input_ids[: samples * seqlen]
    return np.asarray(ids, dtype=np.int64).reshape(samples, seqlen)
