"""Integer products arranged for one token at a time, as the decode form has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_constant, constant_shape
from spikeexport.graphs.onnxruntime.edits import insert_before, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.weights import MODULE_KEY

_CODES, _WEIGHT, _SCALE, _WEIGHT_SCALE, _BIAS = 0, 1, 2, 3, 6
"""Inputs of MatMulIntegerToFloat."""

_NAMES = {_WEIGHT: "Weights", _WEIGHT_SCALE: "Scales"}


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
            if is_integer_product(node) and _bias(node) is None and _is_constant(node):
                groups.setdefault((node.inputs[_CODES], node.inputs[_SCALE]), []).append(node)
        for nodes in groups.values():
            if len(nodes) > 1:
                self._merge(graph, nodes)

    def _merge(self, graph: ir.Graph, nodes: list[ir.Node]) -> None:
        first, names = nodes[0], [str(node.metadata_props.get(MODULE_KEY, node.name)) for node in nodes]
        scope = f"{names[0]}+{names[1].rpartition('.')[2] if len(names) == 2 else len(names) - 1}"
        shapes = [product_sizes(node) or (0, 0) for node in nodes]
        width, sizes = shapes[0][0], [outputs for _, outputs in shapes]
        inputs = list(first.inputs)
        for place, axis, shape in ((_WEIGHT, 1, [width, sum(sizes)]), (_WEIGHT_SCALE, 0, [sum(sizes)])):
            own = [node.inputs[place] for node in nodes]
            inputs[place] = _side_by_side(first, own, axis, shape, f"{scope}/{_NAMES[place]}")
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


def product_sizes(node: ir.Node) -> tuple[int, int] | None:
    """Returns K and N of an integer product whose weight [K, N] has a known shape."""
    weight = node.inputs[_WEIGHT]
    shape = None if weight is None or weight.shape is None else weight.shape.dims
    return (int(shape[0]), int(shape[1])) if shape is not None and len(shape) == 2 else None  # type: ignore[arg-type]


def _is_constant(node: ir.Node) -> bool:
    """Returns whether the weight [K, N] is a constant with one scale for each column."""
    weight, scale = constant_shape(node.inputs[_WEIGHT]), constant_shape(node.inputs[_WEIGHT_SCALE])
    return weight is not None and len(weight) == 2 and scale == weight[1:]


def _is_per_channel(scale: ir.Value | None) -> bool:
    assert scale is not None, "MatMulIntegerToFloat has a scale of its weight"
    return scale.shape is not None and scale.shape.rank() == 1 and scale.shape[0] != 1


def _side_by_side(
    anchor: ir.Node, values: list[ir.Value | None], axis: int, shape: Sequence[int], name: str
) -> ir.Value:
    dtype = values[0].dtype if values[0] is not None else None
    joined = insert_before(anchor, "Concat", values, {"axis": axis}, name=name, dtype=dtype).outputs[0]
    joined.shape = ir.Shape(shape)
    return joined
