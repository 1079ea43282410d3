"""Takes the KV cache out of Attention, so that TensorRT reads the graph, and joins the prefix there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.attention_mask import insert_attention_mask
from spikeexport.graphs.weights import LazyWeight, set_weight

PrefixKeyValues = Sequence[tuple[np.ndarray, np.ndarray]]
"""Per layer (key, value), each float32 [1, kv_heads, P, head_dim]."""


class SplitAttention(ir.passes.InPlacePass):
    """Attention(q, k, v, mask, past_k, past_v) -> 3 outputs becomes Concat and Attention(q, K, V, mask) -> 1 output.

    K = Concat(prefix, past, new) and present = Concat(past, new), both [batch, kv_heads, length, head_dim]. The mask is
    boolean, says everything (causality too: without a past input `is_causal` would align queries with the first
    keys) and is shared by all layers. q, k and v become 4-D, [batch, heads, S, head_dim]. TensorRT accepts Attention
    nodes with one output only.
    """

    def __init__(self, prefix: PrefixKeyValues = ()) -> None:
        """Takes the prefix's KV cache, one pair per layer, or nothing."""
        self._prefix = prefix

    def requires(self, model: ir.Model) -> None:
        """Refuses masks that this pass would lose."""
        for node in _attentions(model.graph):
            causal = node.attributes.get_int("is_causal", 0)
            if causal != 1:
                raise ir.passes.PreconditionError(
                    f"{node.name} carries a mask of its own (is_causal={causal}); only causal attention is split."
                )
        count = len(_attentions(model.graph))
        if self._prefix and count and len(self._prefix) != count:
            raise ir.passes.PreconditionError(f"The prefix has {len(self._prefix)} layers, the graph {count}.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        attentions = _attentions(model.graph)
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        length = self._prefix[0][0].shape[2] if self._prefix else 0
        mask = insert_attention_mask(model.graph, length)
        batch_shape = _batch_shape(model.graph) if length else None
        for layer, node in enumerate(attentions):
            _split(model.graph, node, mask, layer, self._prefix[layer] if length else None, batch_shape)
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
    scope = str(node.name).rsplit("/", 1)[0]
    put = NodeInserter(graph, node)
    heads, kv_heads = node.attributes.get_int("q_num_heads"), node.attributes.get_int("kv_num_heads")
    if past_key is None or past_value is None or not heads or not kv_heads:
        raise GraphError(f"{node.name} has no past inputs or no head counts: this attention is not supported.")
    joined = []
    for kind, new, past, present in (
        ("key", key, past_key, node.outputs[1]),
        ("value", value, past_value, node.outputs[2]),
    ):
        new = _to_heads(put, new, kv_heads, f"{scope}/{kind}")
        current = _concat(put, [past, new], f"{scope}/present_{kind}")
        current.type, current.shape = present.type, present.shape
        name = present.name
        present.replace_all_uses_with(current, replace_graph_outputs=True)
        present.name, current.name = f"{name}.before", name
        if prefix is not None and batch_shape is not None:
            front = _prefix_value(graph, put, prefix[kind == "value"], layer, kind, past, batch_shape)
            # One three-way Concat: TensorRT fuses it, and the cache is copied once.
            current = _concat(put, [front, past, new], f"{scope}/{kind}_with_prefix")
        joined.append(current)
    attributes = {"scale": node.attributes.get_float("scale", None), "is_causal": 0}
    softcap = node.attributes.get_float("softcap", 0.0)
    attributes |= {"softcap": softcap} if softcap else {}
    result = put(
        "Attention",
        _to_heads(put, query, heads, f"{scope}/query"),
        *joined,
        mask,
        name=f"{scope}/Attention",
        dtype=query.dtype,
        **{name: setting for name, setting in attributes.items() if setting is not None},
    )
    flat = _from_heads(put, result, scope, node.outputs[0])
    node.outputs[0].replace_all_uses_with(flat, replace_graph_outputs=True)
    graph.remove(node, safe=True)


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
