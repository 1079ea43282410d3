"""The logits behind a baked prefix alone, kept beside the model: they predict the first token of every text.

The graph gives the prefix's keys and values but never runs the prefix, so what it would say next is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import SpikeExportError

PREFIX_LOGITS_NAME = "prefix_logits.safetensors"
"""File name inside the assets of an .onnx and inside a built folder."""

_KEY = "logits"


def logits_behind(model: Any, prefix_ids: Sequence[int]) -> np.ndarray | None:
    """Runs the prefix through a transformers model and returns its last logits float32 [V]; None without a prefix."""
    import torch

    if not prefix_ids:
        return None
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([list(prefix_ids)]), use_cache=False, logits_to_keep=1)
    return output.logits[0, -1].float().numpy()


def write_prefix_logits(folder: Path, logits: np.ndarray) -> None:
    """Writes float32 [V] into `folder`."""
    from safetensors.numpy import save_file

    save_file({_KEY: np.ascontiguousarray(logits, dtype=np.float32)}, folder / PREFIX_LOGITS_NAME)


def read_prefix_logits(folder: Path) -> np.ndarray | None:
    """Returns float32 [V], or None where `folder` has none.

    Raises:
        SpikeExportError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / PREFIX_LOGITS_NAME
    if not path.is_file():
        return None
    try:
        return load_file(path)[_KEY]
    except (SafetensorError, KeyError, OSError) as error:
        raise SpikeExportError(f"{path} cannot be read ({error}): export the model again.") from error
