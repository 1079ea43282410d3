"""The lowered model's first run, before it gets its final name: it computes, and decode agrees with prefill."""

from __future__ import annotations

import numpy as np
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.runners.base import CausalRunner

_TOKENS = 8

LEAST_AGREEMENT = 0.5
"""Least correlation of one position's logits computed by prefill and by decode.

The two differ only in the order of FP32 sums, which can move a value over the edge between two INT8 codes: nothing in a
good plan, but 0.87 was seen where activation spikes set the scales. A wrong kernel's logits have nothing in common.
"""


def check_first_run(runner: CausalRunner, name: str) -> None:
    """Runs a few tokens through `runner` at once and one by one.

    Args:
        runner: The lowered model.
        name: What to call it in messages.

    Raises:
        BackendError: Logits are not finite, or decode contradicts prefill.
    """
    ids = np.random.default_rng(0).integers(0, runner.vocab_size, (1, _TOKENS)).astype(np.int64)
    whole, _ = runner.prefill(ids)
    logits, cache = runner.prefill(ids[:, :1])
    for place in range(1, _TOKENS):
        logits, cache = runner.decode(ids[:, place : place + 1], cache)
    if not (np.isfinite(whole).all() and np.isfinite(logits).all()):
        raise BackendError(
            f"{name}: the lowered model computes values that are not finite; check the calibration (scales, folds) and "
            "export again."
        )
    agreement = float(np.corrcoef(whole[0, -1], logits[0, -1])[0, 1])
    if not agreement >= LEAST_AGREEMENT:
        raise BackendError(
            f"{name}: prefill and token-by-token decode disagree (correlation of the last logits {agreement:.3f}, "
            f"expected at least {LEAST_AGREEMENT}): this ONNX Runtime computes the lowered graph wrongly here."
        )
