"""Error-compensated rounding of one weight (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import torch

BLOCK = 128
DAMPING = 0.01
"""Share of the mean of the moments' diagonal that is added to it (GPTQ, section 3.3, step 3)."""


def damped(moments: torch.Tensor) -> torch.Tensor:
    """Adds `DAMPING` x the mean diagonal to the diagonal of moments [in, in], so that it can be inverted."""
    diagonal = moments.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return moments + DAMPING * diagonal * torch.eye(len(moments))


def gptq_codes(weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Rounds column by column; each column's rounding error is made up for in the columns that are still to come.

    Args:
        weight: float32 [out, in].
        scale: float32 [out, 1].
        moments: Mean of x x^T over tokens, float32 [in, in], positive definite (see `damped`).
        bits: Of the codes.

    Returns:
        int8 [out, in] within +-(2^(bits-1) - 1). With diagonal moments these are the nearest codes.

    Raises:
        torch.linalg.LinAlgError: The moments are not positive definite.
    """
    limit = 2 ** (bits - 1) - 1
    # Upper factor U of the inverse, U^T U = H^-1: row j holds how the columns behind j answer for an error in j.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.double()))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    left = weight.float().clone()
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, left.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, left.shape[1]))
        errors = torch.empty_like(left[:, block])
        for column in range(block.start, block.stop):
            code = torch.clamp(torch.round(left[:, column] / scale[:, 0]), -limit, limit)
            codes[:, column] = code.to(torch.int8)
            error = (left[:, column] - code * scale[:, 0]) / upper[column, column]
            left[:, column + 1 : block.stop] -= error[:, None] * upper[column, column + 1 : block.stop]
            errors[:, column - block.start] = error
        left[:, block.stop :] -= errors @ upper[block, block.stop :]
    return codes
