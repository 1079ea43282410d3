"""The noise floor: how far a candidate is from itself when its norms' weights move by one part in a million."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from spikeexport.calibration.foundation.progress import say
from spikeexport.compare.perturb import RELATIVE, perturbed
from spikeexport.compare.result import NoiseFloor
from spikeexport.compare.windows import compare_windows
from spikeexport.runners.base import CausalRunner

NOISE_WINDOWS = 4
"""Windows that are run again."""


def noise_floor(subject: str | Path, runner: CausalRunner, windows: np.ndarray) -> NoiseFloor:
    """Runs an open subject and its perturbed twin on the first few windows int64 [N, S].

    Raises:
        UsageError: The subject's weights cannot be changed.
    """
    say(f"Noise floor of {runner.name}: the same with a perturbation of {RELATIVE:g}", level=1)
    with perturbed(subject, runner) as (twin, relative):
        compared = compare_windows(runner, twin, windows[:NOISE_WINDOWS])
    return NoiseFloor(tuple(compared.found), compared.error, relative)
