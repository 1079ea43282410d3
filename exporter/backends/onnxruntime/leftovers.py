"""Work beside the products in the graph that ONNX Runtime runs, with the bytes that it moves."""

from __future__ import annotations

import math
from collections import defaultdict

import onnx_ir as ir
from spikeexport.backends.manifest import Leftover

KINDS = frozenset({"DequantizeLinear", "Cast", "Transpose", "Concat", "Expand"})
"""Operators that the fast form does not need."""


def find_leftovers(graph: ir.Graph) -> dict[str, Leftover]:
    """Counts the operators of `KINDS`, with the bytes that they read and write per token where shapes are known."""
    found: dict[str, list[int | None]] = defaultdict(list)
    for node in graph:
        if node.op_type in KINDS:
            found[node.op_type].append(bytes_per_token(node))
    return {kind: Leftover(count=len(sizes), bytes_moved=_sum(sizes)) for kind, sizes in sorted(found.items()) if sizes}


def bytes_per_token(node: ir.Node) -> int | None:
    """Returns the bytes of a node's operands and result, dynamic axes counted as one; None where one is unknown.

    Weights count whole: they are read at every step.
    """
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    sizes = [_size(value) for value in values]
    return _sum(sizes)


def _size(value: ir.Value) -> int | None:
    if value.shape is None or value.dtype is None:
        return None
    elements = math.prod(axis for axis in value.shape if isinstance(axis, int))
    return int(elements * value.dtype.itemsize)


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
