"""Splits a checkpoint's own joined q/k/v product on the head axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.tensorrt.projections import BY_HEAD, new_heads
from spikeexport.graphs.tensorrt.qdq import constant_value
from spikeexport.graphs.weights import set_weight


class SplitByHead(ir.passes.InPlacePass):
    """product -> Split(last axis) -> [rotary] -> heads becomes product -> heads -> Split(head axis) -> [rotary].

    Split on its last axis, the product is not INT8 in models without grouped heads; on the head axis it is
    ([B, S, N] -> [B, S, heads, D] -> [B, heads, S, D] -> Split).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Attention":
                branches = [_branch(value) for value in new_heads(node)]
                if all(branches) and len({id(branch.split) for branch in branches if branch}) == 1:
                    _rewrite(model.graph, [branch for branch in branches if branch])
                    modified = True
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True)
class _Branch:
    """Split -> [rotary embedding] -> Reshape -> Transpose; `gone` has what stands behind the Split."""

    split: ir.Node
    index: int
    rotary: ir.Node | None
    gone: tuple[ir.Node, ...]
    heads: int


def _branch(value: ir.Value | None) -> _Branch | None:
    transpose = value.producer() if value is not None else None
    if (
        transpose is None
        or transpose.op_type != "Transpose"
        or tuple(transpose.attributes["perm"].as_ints()) != BY_HEAD
    ):
        return None
    reshape = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    shape = constant_value(reshape.inputs[1]) if reshape is not None and reshape.op_type == "Reshape" else None
    if reshape is None or shape is None or len(shape) != 4 or reshape.inputs[0] is None:
        return None
    source = reshape.inputs[0]
    above = source.producer()
    rotary = above if above is not None and above.op_type == "RotaryEmbedding" else None
    if rotary is not None and rotary.inputs[0] is not None:
        source = rotary.inputs[0]
    split = source.producer()
    if split is None or split.op_type != "Split" or split.attributes.get_int("axis", 0) not in (-1, 2):
        return None
    gone = tuple(node for node in (transpose, reshape, rotary) if node is not None)
    if len(split.outputs) != 3 or any(len(node.outputs[0].uses()) != 1 for node in gone[1:]):
        return None
    return _Branch(split, list(split.outputs).index(source), rotary, gone, int(shape[2]))


def _rewrite(graph: ir.Graph, branches: list[_Branch]) -> None:
    old = branches[0].split
    name = str(old.name).rpartition("/")[0]
    heads = [branch.heads for branch in sorted(branches, key=lambda branch: branch.index)]
    shape = set_weight(graph, ir.tensor(np.array([0, 0, sum(heads), -1], np.int64), name=f"{name}.heads"))
    sizes = set_weight(graph, ir.tensor(np.array(heads, np.int64), name=f"{name}.split_heads"))
    reshape = ir.node("Reshape", [old.inputs[0], shape], name=f"{name}/heads")
    turned = ir.node("Transpose", [reshape.outputs[0]], {"perm": BY_HEAD}, name=f"{name}/by_head")
    split = ir.node("Split", [turned.outputs[0], sizes], {"axis": 1}, num_outputs=3, name=f"{name}/SplitHeads")
    graph.insert_before(old, [reshape, turned, split])
    for branch in branches:
        result = split.outputs[branch.index]
        if branch.rotary is not None:
            # with four axes, RotaryEmbedding reads the heads from the shape
            kept = [value for key, value in branch.rotary.attributes.items() if key != "num_heads"]
            again = ir.Node("", "RotaryEmbedding", [result, *branch.rotary.inputs[1:]], kept, name=branch.rotary.name)
            graph.insert_before(branch.gone[0], again)
            result = again.outputs[0]
        branch.gone[0].outputs[0].replace_all_uses_with(result)
    for branch in branches:
        for node in branch.gone:
            graph.remove(node, safe=True)
    graph.remove(old, safe=True)
