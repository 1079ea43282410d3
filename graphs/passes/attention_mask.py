"""The boolean attention masks, each built once for all layers that use it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.insertion import NodeInserter

Window = int | None
"""How many tokens back a layer looks, the token itself counted; None: all."""

_SCOPE = "attention_mask"
_INT64, _BOOL = ir.DataType.INT64, ir.DataType.BOOL


def insert_attention_masks(
    graph: ir.Graph, prefix_length: int, windows: Collection[Window] = (None,)
) -> dict[Window, ir.Value]:
    """Puts the masks' nodes at the head of the graph and returns a mask per window.

    A query sees a key that is not later than itself and not padding; the prefix counts as keys in front that are never
    padding. Each query sees itself, so that a row of padding stays finite (a softmax over nothing is NaN). A window
    counts tokens, not padding: a padded row sees what it would see alone.

    Args:
        graph: Has inputs `input_ids` [batch, S] and `attention_mask` [batch, past + S], int64.
        prefix_length: Number of baked prefix positions P.
        windows: The windows that layers have.

    Returns:
        bool [batch, 1, S, P + past + S] by window; True where a query may look.
    """
    put = NodeInserter(graph, graph[0])
    inputs = {value.name: value for value in graph.inputs}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if prefix_length:
        mask = _with_prefix(put, ids, mask, prefix_length)
    total = _length(put, mask, "total")
    past = put("Sub", total, _length(put, ids, "sequence"), name=f"{_SCOPE}/past", dtype=_INT64, shape=())
    visible = _causal_and_valid(put, mask, past, total)
    masks: dict[Window, ir.Value] = {None: visible}
    for window in windows:
        if window is not None:
            masks[window] = _within(put, visible, mask, past, window)
    return masks


def _causal_and_valid(put: NodeInserter, mask: ir.Value, past: ir.Value, total: ir.Value) -> ir.Value:
    zero, one = put.constant(f"{_SCOPE}.zero", np.int64(0)), put.constant(f"{_SCOPE}.one", np.int64(1))
    keys = put("Range", zero, total, one, name=f"{_SCOPE}/keys", dtype=_INT64, shape=[None])
    queries = put("Range", past, total, one, name=f"{_SCOPE}/queries", dtype=_INT64, shape=[None])
    column = put.constant(f"{_SCOPE}.column_axis", np.array([1], np.int64))
    queries = put("Unsqueeze", queries, column, name=f"{_SCOPE}/query_column", dtype=_INT64, shape=[None, 1])
    causal = put("LessOrEqual", keys, queries, name=f"{_SCOPE}/causal", dtype=_BOOL)
    itself = put("Equal", keys, queries, name=f"{_SCOPE}/itself", dtype=_BOOL)
    valid = put("Cast", mask, name=f"{_SCOPE}/valid", dtype=_BOOL, to=_BOOL)
    valid = put("Unsqueeze", valid, _key_axes(put), name=f"{_SCOPE}/valid_keys", dtype=_BOOL)
    allowed = put("Or", valid, itself, name=f"{_SCOPE}/allowed", dtype=_BOOL)
    return put("And", allowed, causal, name=f"{_SCOPE}/visible", dtype=_BOOL, shape=["batch", 1, None, None])


def _within(put: NodeInserter, visible: ir.Value, mask: ir.Value, past: ir.Value, window: int) -> ir.Value:
    """Narrows `visible` to keys fewer than `window` tokens back; a token's number is how many there are up to it."""
    scope = f"{_SCOPE}/window_{window}"
    axis = put.constant(f"{_SCOPE}.token_axis", np.array(1, np.int64))
    keys = put("CumSum", mask, axis, name=f"{scope}/numbers", dtype=_INT64, shape=mask.shape)
    first = put.constant(f"{_SCOPE}.scalar_axis", np.array([0], np.int64))
    start = put("Unsqueeze", past, first, name=f"{scope}/start", dtype=_INT64, shape=[1])
    end = put.constant(f"{_SCOPE}.end", np.array([np.iinfo(np.int64).max], np.int64))
    column = put.constant(f"{_SCOPE}.column_axis", np.array([1], np.int64))
    queries = put("Slice", keys, start, end, column, name=f"{scope}/query_numbers", dtype=_INT64)
    query_axes = put.constant(f"{_SCOPE}.query_axes", np.array([1, 3], np.int64))
    queries = put("Unsqueeze", queries, query_axes, name=f"{scope}/query_column", dtype=_INT64)
    keys = put("Unsqueeze", keys, _key_axes(put), name=f"{scope}/key_row", dtype=_INT64)
    distance = put("Sub", queries, keys, name=f"{scope}/distance", dtype=_INT64)
    limit = put.constant(f"{_SCOPE}.window_{window}", np.int64(window))
    near = put("Less", distance, limit, name=f"{scope}/near", dtype=_BOOL)
    return put("And", visible, near, name=f"{scope}/visible", dtype=_BOOL, shape=["batch", 1, None, None])


def _key_axes(put: NodeInserter) -> ir.Value:
    return put.constant(f"{_SCOPE}.key_axes", np.array([1, 2], np.int64))


def _with_prefix(put: NodeInserter, ids: ir.Value, mask: ir.Value, prefix_length: int) -> ir.Value:
    length = put.constant(f"{_SCOPE}.prefix_length", np.array([prefix_length], np.int64))
    batch = put("Shape", ids, name=f"{_SCOPE}/batch", dtype=_INT64, shape=[1], start=0, end=1)
    shape = put("Concat", batch, length, name=f"{_SCOPE}/prefix_shape", dtype=_INT64, shape=[2], axis=0)
    ones = put.constant(f"{_SCOPE}.prefix_ones", np.ones((1, 1), np.int64))
    prefix = put("Expand", ones, shape, name=f"{_SCOPE}/prefix", dtype=_INT64)
    return put("Concat", prefix, mask, name=f"{_SCOPE}/with_prefix", dtype=_INT64, axis=1)


def _length(put: NodeInserter, value: ir.Value, what: str) -> ir.Value:
    """Returns the second dimension of `value` as an int64 scalar."""
    shape = put("Shape", value, name=f"{_SCOPE}/{what}_shape", dtype=_INT64, shape=[1], start=1, end=2)
    axis = put.constant(f"{_SCOPE}.scalar_axis", np.array([0], np.int64))
    return put("Squeeze", shape, axis, name=f"{_SCOPE}/{what}_length", dtype=_INT64, shape=())
