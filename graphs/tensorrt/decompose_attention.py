"""Writes attentions that TensorRT has no kernel for out in products and a softmax."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.tensorrt.projections import BY_HEAD
from spikeexport.graphs.tensorrt.qdq import constant_value, dtype_of
from spikeexport.graphs.weights import set_weight

HIDDEN_SCORE = {ir.DataType.FLOAT: -1e30, ir.DataType.BFLOAT16: -1e30, ir.DataType.FLOAT16: -65504.0}
"""Stands for a masked score: finite, since a row of padding may hide everything but itself."""

_KEEP_SIZES = ("Concat", "RotaryEmbedding", "RMSNormalization", "Cast", "Mul", "QuantizeLinear", "DequantizeLinear")


class DecomposeAttention(ir.passes.InPlacePass):
    """Attention(q, k, v, mask) in FP32, or with a soft cap, becomes MatMul, [Tanh,] Where, Softmax, MatMul.

    TensorRT has no fused FP32 attention, and RTX 1.7 refuses the operator in that type when it compiles; its parser
    refuses soft caps (Gemma 2). The heads of a group are folded into the queries' axis, [B, heads, S, D] ->
    [B, kv_heads, group * S, D], so that keys and values are never repeated and no product has five axes.

    Left alone: all others (they fuse), and forms that `export` does not write (no mask, unknown sizes).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Attention" and _is_known_form(node):
                _write_out(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _is_known_form(node: ir.Node) -> bool:
    given = [value for value in node.inputs if value is not None]
    sizes = (_size(node.inputs[0], 1), _size(node.inputs[1], 1), _size(node.inputs[1], 3))
    dtype = dtype_of(node.inputs[0])
    wanted = dtype == ir.DataType.FLOAT or (soft_cap(node) != 0.0 and dtype in HIDDEN_SCORE)
    return wanted and len(given) == 4 and None not in sizes


def soft_cap(node: ir.Node) -> float:
    """Returns the cap of an Attention's scores, 0 for none."""
    attribute = node.attributes.get("softcap")
    return attribute.as_float() if attribute is not None else 0.0


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    query, key, value, mask = node.inputs
    heads, kv_heads, head_dim = _size(query, 1), _size(key, 1), _size(key, 3)
    assert heads, "checked by _is_known_form"
    assert kv_heads, "checked by _is_known_form"
    assert head_dim, "checked by _is_known_form"
    name = (node.name or "attention").rpartition("/")[0] or "attention"
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / math.sqrt(head_dim)
    dtype = dtype_of(query)
    assert dtype is not None, "checked by _is_known_form"
    number_type, cap = dtype.numpy(), soft_cap(node)
    nodes: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value | None], title: str, **attributes: object) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes or None, name=f"{name}/{title}"))  # type: ignore[arg-type]
        return nodes[-1].outputs[0]

    def numbers(title: str, array: np.ndarray) -> ir.Value:
        return set_weight(graph, ir.tensor(array, name=f"{name}.{title}"))

    folded = add("Reshape", [query, numbers("folded", np.array([0, kv_heads, -1, head_dim], np.int64))], "fold_group")
    keys = add("Transpose", [key], "keys_by_column", perm=[0, 1, 3, 2])
    scaled = add("Mul", [folded, numbers("scale", np.array(scale, number_type))], "scale")
    scores = add("MatMul", [scaled, keys], "scores")
    by_head = add("Reshape", [scores, numbers("by_head", np.array([0, heads, -1, 0], np.int64))], "scores_by_head")
    if cap:
        limit, inverse = (numbers(*item) for item in _cap_numbers(cap, number_type))
        by_head = add("Mul", [add("Tanh", [add("Mul", [by_head, inverse], "over_cap")], "Tanh"), limit], "cap")
    hidden = numbers("hidden_score", np.array(HIDDEN_SCORE[dtype], number_type))
    shares = add("Softmax", [add("Where", [mask, by_head, hidden], "mask")], "Softmax", axis=-1)
    grouped = add("Reshape", [shares, numbers("grouped", np.array([0, kv_heads, -1, 0], np.int64))], "shares_by_group")
    mixed = add("MatMul", [grouped, value], "mix")
    output = add("Reshape", [mixed, numbers("out", np.array([0, heads, -1, head_dim], np.int64))], "unfold_group")
    graph.insert_before(node, nodes)
    node.outputs[0].replace_all_uses_with(output)
    graph.remove(node, safe=True)


def _cap_numbers(cap: float, number_type: np.dtype) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    return ("cap", np.array(cap, number_type)), ("inverse_cap", np.array(1 / cap, number_type))


def _size(value: ir.Value | None, axis: int, depth: int = 6) -> int | None:
    """Returns a static size of [B, heads, tokens, D], looked for upwards where it is not written down."""
    if value is None or depth == 0:
        return None
    if value.shape is not None and value.shape.rank() == 4 and isinstance(value.shape[axis], int):
        return int(value.shape[axis])  # type: ignore[arg-type]
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == BY_HEAD:
        above = node.inputs[0].producer() if node.inputs[0] is not None else None
        shape = constant_value(above.inputs[1]) if above is not None and above.op_type == "Reshape" else None
        return int(shape[BY_HEAD[axis]]) if shape is not None and shape[BY_HEAD[axis]] > 0 else None
    if node.op_type == "Split" and axis == node.attributes["axis"].as_int():
        parts = constant_value(node.inputs[1])
        return int(parts[value.index() or 0]) if parts is not None else None
    if node.op_type in _KEEP_SIZES:
        return next((size for item in node.inputs if (size := _size(item, axis, depth - 1)) is not None), None)
    return None
