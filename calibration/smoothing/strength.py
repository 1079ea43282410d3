"""How strongly each channel is rescaled: SmoothQuant's rule on any fold (arXiv 2211.10438, equation 4)."""

from __future__ import annotations

import torch

_FLOOR = 1e-5


def smoothing_scales(
    channel_absmax: torch.Tensor, weight_absmax: torch.Tensor, alpha: float, *, center: bool
) -> torch.Tensor:
    """Returns s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), clamped to at least 1e-5.

    Args:
        channel_absmax: max |X_j| per input channel, float [channels].
        weight_absmax: max |W_j| over all rows of all linears that read the channel, float [channels].
        alpha: 0 leaves activations as they are (weights are flattened), 1 flattens activations.
        center: Divides s by its geometric mean, so that no overall factor moves between producer and consumers
            (SmoothQuant as published does not).

    Returns:
        float32 [channels]; channels that were never active get s of the smallest active one.
    """
    s = channel_absmax.float().clamp_min(_FLOOR) ** alpha / weight_absmax.float().clamp_min(_FLOOR) ** (1 - alpha)
    s = s.clamp_min(_FLOOR)
    return s / s.log().mean().exp() if center else s
