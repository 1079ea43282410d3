"""q, k and v of one attention as one matrix product whose packed output GroupQueryAttention reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_lazy_constant, constant_array, constant_shape
from spikeexport.graphs.onnxruntime.edits import insert_before, only_reader
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.weights import MODULE_KEY


class PackQkv(LoweringPass):
    """Three products of one kind that share their input -> one with the weights side by side.

    Works on MatMulIntegerToFloat (weight [K, N], scale [N]), MatMulNBits (weight [N, blocks, block]) and plain MatMul.
    """

    name = "packed-qkv"

    def rewrite(self, graph: ir.Graph) -> None:
        """Packs each attention whose three products can stand side by side."""
        for node in list(graph):
            if node.op_type != "GroupQueryAttention" or node.domain != MICROSOFT or node.inputs[1] is None:
                continue
            products = [value.producer() if value is not None else None for value in node.inputs[:3]]
            reason = _why_not_packable(products)
            if reason is not None:
                self.skip(node, reason)
                continue
            found = [product for product in products if product is not None]
            packed = side_by_side(graph, found, f"{scope_of(found[0]).rpartition('.')[0]}.qkv_proj")
            node.replace_input_with(0, packed.outputs[0])
            node.replace_input_with(1, None)
            node.replace_input_with(2, None)
            self.applied += 1


_WEIGHT_AXES: dict[str, dict[int, int]] = {
    "MatMulIntegerToFloat": {1: 1, 3: 0, 6: 0},
    "MatMulNBits": {1: 0, 2: 0, 5: 0},
    "MatMul": {1: 1},
}
"""Operator -> its inputs that hold one entry per output channel, with that axis."""


def _why_not_packable(products: Sequence[ir.Node | None]) -> str | None:
    first = products[0]
    if first is None or first.op_type not in _WEIGHT_AXES:
        return "query, key or value is not a linear's own output (a norm or a rotation stands between)"
    axes = _WEIGHT_AXES[first.op_type]
    for product in products:
        if product is None or product.op_type != first.op_type:
            return "query, key and value are linears of different kinds"
        if len(product.inputs) != len(first.inputs):
            return "only some of query, key and value have a bias"
        if only_reader(product.outputs[0]) is None:
            return f"{product.name}'s output has other readers"
        for place, value in enumerate(product.inputs):
            if place in axes and value is not None and constant_shape(value) is None:
                return f"{product.name}'s weight is computed at run time"
            if place not in axes and value is not first.inputs[place]:
                return "query, key and value read different inputs"
    return None


def side_by_side(graph: ir.Graph, products: Sequence[ir.Node], scope: str) -> ir.Node:
    """Inserts one product, named after `scope`, with the weights of `products`: of one kind, on one input."""
    first, axes = products[0], _WEIGHT_AXES[products[0].op_type]
    inputs = list(first.inputs)
    for place, axis in axes.items():
        if place < len(inputs) and inputs[place] is not None:
            inputs[place] = _concatenate(graph, [product.inputs[place] for product in products], axis)
    attributes = {name: attribute.value for name, attribute in first.attributes.items()}
    if "N" in attributes:
        attributes["N"] = sum(product.attributes["N"].as_int() for product in products)
    return insert_before(
        first,
        first.op_type,
        inputs,
        attributes,
        domain=first.domain,
        name=f"{scope}/{str(first.name).rpartition('/')[2]}",
        metadata={MODULE_KEY: " ".join(product.metadata_props.get(MODULE_KEY, "") for product in products).strip()},
    )


def scope_of(product: ir.Node) -> str:
    """Returns the name of a product's node without its operator: the linear's module path."""
    return str(product.name).rpartition("/")[0]


def _concatenate(graph: ir.Graph, parts: Sequence[ir.Value | None], axis: int) -> ir.Value:
    values = [part for part in parts if part is not None]
    shapes = [constant_shape(value) for value in values]
    shape = list(shapes[0] or ())
    shape[axis] = sum(part[axis] for part in shapes if part is not None)
    dtype = values[0].dtype
    assert dtype is not None

    def compute() -> np.ndarray:
        arrays = [constant_array(value) for value in values]
        return np.concatenate([array for array in arrays if array is not None], axis=axis)

    return add_lazy_constant(graph, "+".join(str(value.name) for value in values), compute, dtype, shape)
