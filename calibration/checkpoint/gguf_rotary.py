"""What a .gguf file says about rotary embeddings outside its metadata: a factor per frequency, as a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spikeexport.calibration.checkpoint.gguf_tensors import GgufTensors
from spikeexport.calibration.foundation.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROTARY_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every release with llama3 scaling has; the file's factors hold the result of these three and of `factor`."""


def scale_rotary(config: PretrainedConfig, tensors: GgufTensors, file: Path) -> None:
    """Writes the rotary scaling that the file's tensors hold into `config`, which is changed in place.

    llama.cpp's converter replaces llama3 scaling by a tensor of divisors, one per rotary frequency; transformers'
    loader does not read it. The scaling is recognised by recomputing the divisors.

    Raises:
        CheckpointError: A tensor of the file would be lost: no parameter takes it, and it is no known scaling.
    """
    for tensor in tensors.leftovers:
        scaling = _llama3_scaling(config, tensors.dequantize(tensor)) if tensor.name == ROTARY_FACTORS else None
        if scaling is None:
            raise CheckpointError(
                f"{file}: tensor {tensor.name} {list(tensor.shape)} has no place in a {config.model_type} model as it "
                "is known here, and leaving it out would change what the model computes: give the model's safetensors "
                "folder."
            )
        config.rope_parameters = {**config.rope_parameters, **scaling}


def _llama3_scaling(config: PretrainedConfig, factors: np.ndarray) -> dict[str, Any] | None:
    """Returns what to add to the rotary parameters so that `factors` [head_dim / 2] come out, or None."""
    factor = float(factors.max())
    if np.allclose(factors, 1.0):
        return {}
    scaling = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    expected = _llama3_factors(2 * len(factors), config.rope_parameters["rope_theta"], factor)
    return scaling if np.allclose(factors, expected, rtol=1e-4) else None


def _llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """Returns by what llama3 scaling divides each frequency, [head_dim / 2]: 1 for short waves, `factor` for long."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)
