"""Computes queries, keys and values of a layer in one product, split on the head axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.passes.linears import MODULE_KEY
from spikeexport.graphs.tensorrt.projections import BY_HEAD, Projection, projections_of
from spikeexport.graphs.weights import set_weight

_HEAD_AXIS = 1


class JoinQkv(ir.passes.InPlacePass):
    """q_proj, k_proj and v_proj behind one quantised input become one MatMul with their weights side by side.

    TensorRT merges the three products by itself, but then gives each its own kernel for scaling, rotary embedding and
    transposition; from one product split on the head axis, one kernel does that for all (two fewer per layer).
    Splitting the last axis loses the INT8 product, so it is [B, S, N] -> [B, S, heads, D] -> [B, heads, S, D] -> Split.

    Attributes:
        skipped: Name of each attention that was left alone -> why.
    """

    def __init__(self) -> None:
        """Starts with nothing skipped."""
        self.skipped: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified = False
        for node in list(model.graph):
            if node.op_type != "Attention":
                continue
            found = projections_of(node)
            why = found if isinstance(found, str) else _why_not(found)
            if why is not None:
                self.skipped[node.name or ""] = why
            elif not isinstance(found, str):
                _rewrite(model.graph, found)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _why_not(branches: Sequence[Projection]) -> str | None:
    if len({id(branch.product.inputs[0]) for branch in branches}) != 1:
        return "its projections read different inputs"
    if len({branch.head_dim for branch in branches}) != 1:
        return "its heads have different sizes"
    if len({branch.bias is None for branch in branches}) != 1:
        return "only some of its projections have a bias"
    if len({len(branch.weight.dequantize.inputs) for branch in branches}) != 1:
        return "only some of its weights have a zero point"
    return None


def _rewrite(graph: ir.Graph, branches: Sequence[Projection]) -> None:
    query = branches[0]
    name = f"{query.product.metadata_props[MODULE_KEY].rpartition('.')[0]}.qkv_proj"
    heads = [branch.heads for branch in branches]
    shape = _numbers(graph, f"{name}.heads", [0, 0, sum(heads), query.head_dim])
    sizes = _numbers(graph, f"{name}.split", heads)
    product = ir.node("MatMul", [query.product.inputs[0], _joined_weight(graph, branches, name)], name=f"{name}/MatMul")
    product.metadata_props[MODULE_KEY] = ",".join(branch.product.metadata_props[MODULE_KEY] for branch in branches)
    nodes = [product]
    if query.bias is not None:
        bias = _side_by_side(graph, [branch.bias for branch in branches], f"{name}.bias", axis=0)
        nodes.append(ir.node("Add", [product.outputs[0], bias], name=f"{name}/Add"))
    nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], shape], name=f"{name}/heads"))
    nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": BY_HEAD}, name=f"{name}/by_head"))
    split = ir.node("Split", [nodes[-1].outputs[0], sizes], {"axis": _HEAD_AXIS}, num_outputs=3, name=f"{name}/Split")
    graph.insert_before(query.product, [*nodes, split])
    for branch, part in zip(branches, split.outputs, strict=True):
        _replace_branch(graph, branch, part)


def _replace_branch(graph: ir.Graph, branch: Projection, part: ir.Value) -> None:
    """Feeds what read the branch's heads from its part [B, heads, S, D] of the joined product, steps applied again."""
    result = part
    for step in branch.steps:
        # with four axes, RotaryEmbedding reads the heads from the shape
        attributes = [value for key, value in step.attributes.items() if key != "num_heads"]
        again = ir.Node("", step.op_type, [result, *step.inputs[1:]], attributes, name=step.name)
        graph.insert_before(branch.gone[-1], again)
        result = again.outputs[0]
    branch.by_head.replace_all_uses_with(result)
    for node in (*reversed(branch.gone), *branch.weight.between, branch.weight.dequantize):
        graph.remove(node, safe=True)


def _joined_weight(graph: ir.Graph, branches: Sequence[Projection], name: str) -> ir.Value:
    """Puts the codes [K, N], scales [N] and zero points [N] of the weights side by side, dequantised at once."""
    nodes = [branch.weight.dequantize for branch in branches]
    kinds = (("weight_q", 1), ("weight_scale", 0), ("weight_zero_point", 0))[: len(nodes[0].inputs)]
    inputs = [
        _side_by_side(graph, [node.inputs[index] for node in nodes], f"{name}.{suffix}", axis)
        for index, (suffix, axis) in enumerate(kinds)
    ]
    steps = [ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{name}/weight/DequantizeLinear")]
    for step in reversed(branches[0].weight.between):
        title = f"{name}/weight/{step.op_type}"
        steps.append(ir.Node("", step.op_type, [steps[-1].outputs[0]], list(step.attributes.values()), name=title))
    graph.insert_before(branches[0].product, steps)
    return steps[-1].outputs[0]


def _side_by_side(graph: ir.Graph, values: Sequence[ir.Value | None], name: str, axis: int) -> ir.Value:
    """Registers the values side by side on `axis`; they are read when the result is written."""
    tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)
    dtype = tensors[0].dtype

    def join() -> ir.Tensor:
        return ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=axis), dtype=dtype, name=name)

    return set_weight(graph, ir.LazyTensor(join, dtype=dtype, shape=ir.Shape(shape), name=name))


def _numbers(graph: ir.Graph, name: str, values: Sequence[int]) -> ir.Value:
    return set_weight(graph, ir.tensor(np.array(values, np.int64), name=name))
