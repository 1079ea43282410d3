"""The boolean attention mask, built once for all layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.insertion import NodeInserter

_SCOPE = "attention_mask"


def insert_attention_mask(graph: ir.Graph, prefix_length: int) -> ir.Value:
    """Puts the mask's nodes at the head of the graph and returns the mask.

    A query sees a key that is not later than itself and not padding; the prefix counts as keys in front that are never
    padding. Each query sees itself, so that a row of padding stays finite (a softmax over nothing is NaN).

    Args:
        graph: Has inputs `input_ids` [batch, S] and `attention_mask` [batch, past + S], int64.
        prefix_length: Number of baked prefix positions P.

    Returns:
        bool [batch, 1, S, P + past + S]; True where a query may look.
    """
    put = NodeInserter(graph, graph[0])
    inputs = {value.name: value for value in graph.inputs}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if prefix_length:
        mask = _with_prefix(put, ids, mask, prefix_length)
    new = _length(put, ids, "sequence")
    total = _length(put, mask, "total")
    start = put("Sub", total, new, name=f"{_SCOPE}/past", dtype=ir.DataType.INT64, shape=())
    zero, one = put.constant(f"{_SCOPE}.zero", np.int64(0)), put.constant(f"{_SCOPE}.one", np.int64(1))
    keys = put("Range", zero, total, one, name=f"{_SCOPE}/keys", dtype=ir.DataType.INT64, shape=[None])
    queries = put("Range", start, total, one, name=f"{_SCOPE}/queries", dtype=ir.DataType.INT64, shape=[None])
    column = put.constant(f"{_SCOPE}.column_axis", np.array([1], np.int64))
    queries = put("Unsqueeze", queries, column, name=f"{_SCOPE}/query_column")
    causal = put("LessOrEqual", keys, queries, name=f"{_SCOPE}/causal", dtype=ir.DataType.BOOL)
    itself = put("Equal", keys, queries, name=f"{_SCOPE}/itself", dtype=ir.DataType.BOOL)
    valid = put("Cast", mask, name=f"{_SCOPE}/valid", dtype=ir.DataType.BOOL, to=ir.DataType.BOOL)
    middle = put.constant(f"{_SCOPE}.head_axes", np.array([1, 2], np.int64))
    valid = put("Unsqueeze", valid, middle, name=f"{_SCOPE}/valid_keys")
    allowed = put("Or", valid, itself, name=f"{_SCOPE}/allowed", dtype=ir.DataType.BOOL)
    return put("And", allowed, causal, name=f"{_SCOPE}/visible", dtype=ir.DataType.BOOL, shape=["batch", 1, None, None])


def batch_size(put: NodeInserter, ids: ir.Value) -> ir.Value:
    """Inserts a Shape node and returns the batch size, int64 [1]."""
    return put("Shape", ids, name="batch/size", dtype=ir.DataType.INT64, shape=[1], start=0, end=1)


def _with_prefix(put: NodeInserter, ids: ir.Value, mask: ir.Value, prefix_length: int) -> ir.Value:
    length = put.constant(f"{_SCOPE}.prefix_length", np.array([prefix_length], np.int64))
    batch = put("Shape", ids, name=f"{_SCOPE}/batch", dtype=ir.DataType.INT64, shape=[1], start=0, end=1)
    shape = put("Concat", batch, length, name=f"{_SCOPE}/prefix_shape", dtype=ir.DataType.INT64, shape=[2], axis=0)
    ones = put.constant(f"{_SCOPE}.prefix_ones", np.ones((1, 1), np.int64))
    prefix = put("Expand", ones, shape, name=f"{_SCOPE}/prefix", dtype=ir.DataType.INT64)
    return put("Concat", prefix, mask, name=f"{_SCOPE}/with_prefix", dtype=ir.DataType.INT64, axis=1)


def _length(put: NodeInserter, value: ir.Value, what: str) -> ir.Value:
    """Returns the second dimension of `value` as an int64 scalar."""
    shape = put("Shape", value, name=f"{_SCOPE}/{what}_shape", dtype=ir.DataType.INT64, shape=[1], start=1, end=2)
    axis = put.constant(f"{_SCOPE}.scalar_axis", np.array([0], np.int64))
    return put("Squeeze", shape, axis, name=f"{_SCOPE}/{what}_length", dtype=ir.DataType.INT64, shape=())
