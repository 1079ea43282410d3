"""The two optimisation profiles of a decoder: prefill (many tokens behind any cache) and decode (one token behind it).

The shapes of a profile must fit each other at its minimum, optimum and maximum, so the mask is as long as the cache
and the new tokens together, also where a runner never fills both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spikeexport.backends.base import BuildOptions
from spikeexport.calibration.foundation.errors import BackendError, UsageError

PREFILL, DECODE = 0, 1
PROFILE_NAMES = ("prefill", "decode")
"""Names of the profiles by index; execution contexts and reports use the same."""

_PREFILL_OPT_SHARE = 4
_TOKENS = ("input_ids", "position_ids")
_MASK = "attention_mask"
_PAST = "past_key_values."

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """What an engine must take.

    Attributes:
        max_batch: Largest batch.
        max_seq: Most tokens behind the prefix, cache and new ones together.
    """

    max_batch: int
    max_seq: int

    @classmethod
    def resolve(cls, options: BuildOptions, max_positions: int, prefix_length: int) -> Limits:
        """Checks the asked limits against the model's.

        Args:
            options: What the user asked for; `max_seq` None takes the model's limit up to the default.
            max_positions: Positions that the model's rotary tables hold.
            prefix_length: Tokens of the baked prefix, which take positions too.

        Raises:
            UsageError: `max_seq` is above what the model has positions for.
        """
        room = max_positions - prefix_length
        if options.max_seq is None:
            return cls(options.max_batch, min(room, options.DEFAULT_MAX_SEQ))
        if options.max_seq > room:
            behind = f" behind its prefix of {prefix_length}" if prefix_length else ""
            raise UsageError(
                f"--max-seq is {options.max_seq}, the model has {room} positions{behind}: give at most {room}."
            )
        return cls(options.max_batch, options.max_seq)


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, most usual and largest shape of one input in one profile."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


def profile_shapes(inputs: Mapping[str, Sequence[int]], limits: Limits) -> tuple[dict[str, ShapeRange], ...]:
    """Returns the shape ranges of every input for each profile, prefill first.

    Args:
        inputs: Input name -> shape with -1 for dynamic axes ([B, S], [B, P + S] or [B, kv_heads, P, head_dim]).
        limits: Batch and sequence limits.

    Raises:
        BackendError: An input is none that a decoder's contract has.
    """
    longest = limits.max_seq
    usual = max(1, longest // _PREFILL_OPT_SHARE)
    # (new tokens, tokens in the cache) at the minimum, the optimum and the maximum
    prefill = ((1, 0), (usual, 0), (longest, longest - 1))
    decode = ((1, 0), (1, usual), (1, longest - 1))
    return tuple(
        {name: _range(name, tuple(shape), steps, limits) for name, shape in inputs.items()}
        for steps in (prefill, decode)
    )


def _range(name: str, shape: Shape, steps: Sequence[tuple[int, int]], limits: Limits) -> ShapeRange:
    batches = (1, 1, limits.max_batch)
    shapes = [_shape(name, shape, batch, new, past) for batch, (new, past) in zip(batches, steps, strict=True)]
    return ShapeRange(*shapes)


def _shape(name: str, shape: Shape, batch: int, new: int, past: int) -> Shape:
    if name in _TOKENS:
        return (batch, new)
    if name == _MASK:
        return (batch, new + past)
    if name.startswith(_PAST) and len(shape) == 4:
        return (batch, shape[1], past, shape[3])
    raise BackendError(
        f"The graph has an input {name!r} of shape {list(shape)}, which no exported decoder has: "
        "build the .onnx as it was exported."
    )
