"""The decode form of a lowered graph: the same integer products, arranged for one token at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_constant, constant_shape
from spikeexport.graphs.onnxruntime.edits import insert_before, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.weights import MODULE_KEY

_CODES, _WEIGHT, _SCALE, _WEIGHT_SCALE, _BIAS = 0, 1, 2, 3, 6
"""Inputs of MatMulIntegerToFloat."""


class MergeProducts(LoweringPass):
    """Integer products of one input -> one product with the weights side by side, and a Split behind it.

    gate_proj and up_proj for the most part. The weights are put together when the file is loaded (Concat of two
    initializers), so that both forms read the same bytes. With one token the Split costs less than a product's start;
    with a prompt it would not.
    """

    name = "merged-products"

    def rewrite(self, graph: ir.Graph) -> None:
        """Merges each group of products that read the same codes, have a weight per output channel and no bias."""
        groups: dict[tuple[ir.Value | None, ir.Value | None], list[ir.Node]] = {}
        for node in graph:
            if is_integer_product(node) and _bias(node) is None and _outputs(node) is not None:
                groups.setdefault((node.inputs[_CODES], node.inputs[_SCALE]), []).append(node)
        for nodes in groups.values():
            if len(nodes) > 1:
                self._merge(graph, nodes)

    def _merge(self, graph: ir.Graph, nodes: list[ir.Node]) -> None:
        first, names = nodes[0], [str(node.metadata_props.get(MODULE_KEY, node.name)) for node in nodes]
        scope = "+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])
        sizes = [_outputs(node) or 0 for node in nodes]
        inputs = list(first.inputs)
        inputs[_WEIGHT] = _side_by_side(first, [node.inputs[_WEIGHT] for node in nodes], 1, f"{scope}/Weights")
        scales = _side_by_side(first, [node.inputs[_WEIGHT_SCALE] for node in nodes], 0, f"{scope}/Scales")
        scales.shape = ir.Shape([sum(sizes)])
        inputs[_WEIGHT_SCALE] = scales
        product = insert_before(
            first,
            "MatMulIntegerToFloat",
            inputs,
            domain=MICROSOFT,
            name=f"{scope}/MatMulIntegerToFloat",
            metadata={MODULE_KEY: " ".join(names)},
        )
        lengths = add_constant(graph, "split." + ".".join(map(str, sizes)), np.array(sizes, np.int64))
        parts = insert_before(
            first,
            "Split",
            [product.outputs[0], lengths],
            {"axis": -1},
            name=f"{scope}/Split",
            outputs=("",) * len(nodes),
        )
        for node, part in zip(nodes, parts.outputs, strict=True):
            part.type = ir.TensorType(ir.DataType.FLOAT)
            take_over(node.outputs[0], part)
        self.applied += len(nodes)


class ScalesBehind(LoweringPass):
    """MatMulIntegerToFloat with a scale per output channel -> one scale for all, and a Mul by the channels' behind it.

    The kernel of the former is 1.1 to 1.2 x slower for one token than both together; with a prompt it is not. Only FP32
    roundings move. A product with a bias stays as it is: an Add behind it would cost as much as is gained.
    """

    name = "scales-behind"

    def rewrite(self, graph: ir.Graph) -> None:
        """Rewrites every integer product that has a scale per output channel and no bias."""
        for node in list(graph):
            if is_integer_product(node) and _is_per_channel(node.inputs[_WEIGHT_SCALE]) and _bias(node) is None:
                self._rewrite(graph, node)

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        scope = str(node.name).rpartition("/")[0]
        inputs = list(node.inputs[:_BIAS])
        inputs[_WEIGHT_SCALE] = add_constant(graph, "scale_of_one", np.array(1, np.float32))
        product = insert_before(
            node, node.op_type, inputs, domain=node.domain, name=node.name, metadata=node.metadata_props
        )
        scaled = insert_before(node, "Mul", [product.outputs[0], node.inputs[_WEIGHT_SCALE]], name=f"{scope}/Scale")
        take_over(node.outputs[0], scaled.outputs[0])
        self.applied += 1


def is_integer_product(node: ir.Node) -> bool:
    """Returns whether a node multiplies codes by INT8 weights."""
    return node.op_type == "MatMulIntegerToFloat" and node.domain == MICROSOFT


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[_BIAS] if len(node.inputs) > _BIAS else None


def _outputs(node: ir.Node) -> int | None:
    """Returns N of a constant weight [K, N] with one scale for each column."""
    weight, scale = constant_shape(node.inputs[_WEIGHT]), constant_shape(node.inputs[_WEIGHT_SCALE])
    return weight[1] if weight is not None and len(weight) == 2 and scale == weight[1:] else None


def _is_per_channel(scale: ir.Value | None) -> bool:
    assert scale is not None, "MatMulIntegerToFloat has a scale of its weight"
    return scale.shape is not None and scale.shape.rank() == 1 and scale.shape[0] != 1


def _side_by_side(anchor: ir.Node, values: list[ir.Value | None], axis: int, name: str) -> ir.Value:
    dtype = values[0].dtype if values[0] is not None else None
    return insert_before(anchor, "Concat", values, {"axis": axis}, name=name, dtype=dtype).outputs[0]
