"""What is done to a linear's input before it is quantised: a rotation in blocks of channels, and a shift.

A gated product has a few large channels among many small ones, which a single scale serves badly. An orthogonal
rotation spreads each of them over its block (QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406): the norm of the
block stays, its largest value falls by up to the square root of the block. The weight takes the inverse rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 64
"""Channels that are rotated together. Entries of the matrix are +-1/8, exact in FP16."""

_SMALLEST = 16


@dataclass(frozen=True)
class InputTransform:
    """x -> x R - z, block by block of the channels.

    Attributes:
        rotation: R, orthogonal, float32 [block, block], or None.
        shift: z, float32 [channels], or None.
    """

    rotation: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Transforms an input [.., channels]."""
        rotated = self.rotate(x)
        return rotated if self.shift is None else rotated - self.shift.to(rotated)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotates the last axis [.., channels] of an input, or of a weight [out, in] that reads it."""
        return x if self.rotation is None else rotate(x, self.rotation)


NONE = InputTransform()
"""Leaves an input as it is."""


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Multiplies each block of the last axis [.., channels] by `rotation` [block, block] from the right."""
    return (x.unflatten(-1, (-1, len(rotation))) @ rotation.to(x)).flatten(-2)


def block_for(channels: int, largest: int = BLOCK) -> int | None:
    """Returns the largest power of two, at most `largest`, that divides `channels`; None where it is below 16."""
    block = min(channels & -channels, largest)
    return block if block >= _SMALLEST else None


def hadamard(block: int) -> torch.Tensor:
    """Returns Sylvester's Hadamard matrix over sqrt(block): orthogonal, symmetric, float32 [block, block].

    Args:
        block: A power of two.
    """
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / block**0.5
