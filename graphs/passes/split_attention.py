"""Takes the KV cache out of Attention, so that TensorRT reads the graph, and joins the prefix there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.attention_mask import Window, insert_attention_masks
from spikeexport.graphs.weights import LazyWeight, set_weight

PrefixKeyValues = Sequence[tuple[np.ndarray, np.ndarray]]
"""Per layer (key, value), each float32 [1, kv_heads, P, head_dim]."""


class SplitAttention(ir.passes.InPlacePass):
    """Attention(q, k, v, mask, past_k, past_v) -> 3 outputs becomes Concat and Attention(q, K, V, mask) -> 1 output.

    K = Concat(prefix, past, new) and present = Concat(past, new), both [batch, kv_heads, length, head_dim]. The mask is
    boolean, says everything (causality too: without a past input `is_causal` would align queries with the first
    keys) and takes the place of the builder's; layers of one window share it. q, k and v become 4-D,
    [batch, heads, S, head_dim]. TensorRT accepts Attention nodes with one output only.
    """

    def __init__(self, prefix: PrefixKeyValues = (), windows: Sequence[Window] = ()) -> None:
        """Takes the prefix's KV cache and how far back each layer looks, one per layer; no windows: all look at all."""
        self._prefix = prefix
        self._windows = windows

    def requires(self, model: ir.Model) -> None:
        """Refuses a prefix or windows for another number of layers."""
        count = len(_attentions(model.graph))
        for what, given in (("prefix", self._prefix), ("list of windows", self._windows)):
            if given and count and len(given) != count:
                raise ir.passes.PreconditionError(f"The {what} has {len(given)} layers, the graph {count}.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        attentions = _attentions(model.graph)
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        length = self._prefix[0][0].shape[2] if self._prefix else 0
        windows = self._windows or [None] * len(attentions)
        masks = insert_attention_masks(model.graph, length, dict.fromkeys(windows))
        batch_shape = _batch_shape(model.graph) if length else None
        for layer, node in enumerate(attentions):
            prefix = self._prefix[layer] if length else None
            _split(model.graph, node, masks[windows[layer]], layer, prefix, batch_shape)
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every Attention has one output and no past."""
        if _attentions(model.graph):
            raise ir.passes.PostconditionError("An Attention node still has a past input.")


def _attentions(graph: ir.Graph) -> list[ir.Node]:
    """Returns the Attention nodes that still hold a cache, in layer order."""
    return [node for node in graph if node.op_type == "Attention" and (len(node.outputs) > 1 or len(node.inputs) > 4)]


def _split(
    graph: ir.Graph,
    node: ir.Node,
    mask: ir.Value,
    layer: int,
    prefix: tuple[np.ndarray, np.ndarray] | None,
    batch_shape: ir.Value | None,
) -> None:
    query, key, value, _, past_key, past_value = node.inputs[:6]
    heads, kv_heads = node.attributes.get_int("q_num_heads"), node.attributes.get_int("kv_num_heads")
    if not (query and key and value and past_key and past_value and heads and kv_heads):
        raise GraphError(f"{node.name} has no past inputs or no head counts: this attention is not supported.")
    scope = str(node.name).rsplit("/", 1)[0]
    put = NodeInserter(graph, node)
    joined = []
    for index, (kind, new, past) in enumerate((("key", key, past_key), ("value", value, past_value))):
        new = _to_heads(put, new, kv_heads, f"{scope}/{kind}")
        current = _concat(put, [past, new], f"{scope}/present_{kind}")
        _take_place(current, node.outputs[1 + index])
        if prefix is not None and batch_shape is not None:
            front = _prefix_value(graph, put, prefix[index], layer, kind, past, batch_shape)
            # One three-way Concat: TensorRT fuses it, and the cache is copied once.
            current = _concat(put, [front, past, new], f"{scope}/{kind}_with_prefix")
        joined.append(current)
    query = _to_heads(put, query, heads, f"{scope}/query")
    result = put("Attention", query, *joined, mask, name=f"{scope}/Attention", dtype=query.dtype, **_settings(node))
    flat = _from_heads(put, result, scope, node.outputs[0])
    node.outputs[0].replace_all_uses_with(flat, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _settings(node: ir.Node) -> dict[str, Any]:
    """Returns the attributes that stay; the head counts are in the shapes now."""
    kept = {name: node.attributes.get_float(name, 0.0) for name in ("scale", "softcap")}
    return {"is_causal": 0} | {name: setting for name, setting in kept.items() if setting}


def _take_place(new: ir.Value, old: ir.Value) -> None:
    """Gives `new` the name, type and readers of `old`, a graph output among them."""
    new.type, new.shape, name = old.type, old.shape, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}.before", name


def _concat(put: NodeInserter, parts: list[ir.Value], name: str) -> ir.Value:
    return put("Concat", *parts, name=name, dtype=parts[-1].dtype, axis=2)


def _to_heads(put: NodeInserter, value: ir.Value, heads: int, name: str) -> ir.Value:
    """[batch, S, heads * head_dim] -> [batch, heads, S, head_dim]; a 4-D value is returned as it is."""
    if value.shape is not None and value.shape.rank() == 4:
        return value
    shape = put.constant(f"attention.heads_{heads}", np.array([0, 0, heads, -1], np.int64))
    split = put("Reshape", value, shape, name=f"{name}_heads", dtype=value.dtype)
    return put("Transpose", split, name=f"{name}_by_head", dtype=value.dtype, perm=[0, 2, 1, 3])


def _from_heads(put: NodeInserter, value: ir.Value, scope: str, like: ir.Value) -> ir.Value:
    """[batch, heads, S, head_dim] -> [batch, S, heads * head_dim]."""
    turned = put("Transpose", value, name=f"{scope}/output_by_position", dtype=value.dtype, perm=[0, 2, 1, 3])
    shape = put.constant("attention.merged", np.array([0, 0, -1], np.int64))
    return put("Reshape", turned, shape, name=f"{scope}/output_merged", dtype=like.dtype, shape=like.shape)


def _batch_shape(graph: ir.Graph) -> ir.Value:
    """Returns int64 [batch, 1, 1, 1], the shape that a prefix tensor is expanded to."""
    put = NodeInserter(graph, graph[0])
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    batch = put("Shape", ids, name="prefix/batch", dtype=ir.DataType.INT64, shape=[1], start=0, end=1)
    ones = put.constant("prefix.ones", np.ones(3, np.int64))
    return put("Concat", batch, ones, name="prefix/batch_shape", dtype=ir.DataType.INT64, shape=[4], axis=0)


def _prefix_value(
    graph: ir.Graph, put: NodeInserter, array: np.ndarray, layer: int, kind: str, past: ir.Value, batch_shape: ir.Value
) -> ir.Value:
    name = f"prefix.{layer}.{kind}"
    tensor = LazyWeight(name, lambda: array, array.shape, past.dtype or ir.DataType.FLOAT)
    value = set_weight(graph, tensor)
    return put("Expand", value, batch_shape, name=f"{name}/Expand", dtype=past.dtype)
