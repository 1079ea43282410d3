"""The decode form of a lowered graph: unquantised inputs on the same INT8 weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_constant, constant_array
from spikeexport.graphs.onnxruntime.edits import insert_before, producer, take_over
from spikeexport.graphs.onnxruntime.integer_linear import is_integer_product
from spikeexport.graphs.onnxruntime.lowering_pass import LoweringPass


class WeightOnlyDecode(LoweringPass):
    """MatMulIntegerToFloat(Q_u8(x), W) -> MatMul(x, DequantizeLinear(W)), which ONNX Runtime makes MatMulNBits.

    A step of one token is bound by reading weights, and MatMulNBits reads them fastest. W stays the very initializer
    of the prefill form, [K, N]: both graphs read one file, and ONNX Runtime (1.32 and later) re-lays it when loading.
    A shift of the input is undone: it serves quantisation alone.
    """

    name = "weight-only-decode"

    def rewrite(self, graph: ir.Graph) -> None:
        """Gives each integer product its unquantised input back."""
        for node in list(graph):
            if not is_integer_product(node):
                continue
            quantize = producer(node.inputs[0], "QuantizeLinear")
            if quantize is None:
                self.skip(node, "its input is not quantised by a QuantizeLinear of its own")
                continue
            _replace(node, quantize.inputs[0])
            self.applied += 1


def _replace(node: ir.Node, source: ir.Value | None) -> None:
    scope = str(node.name).rpartition("/")[0]
    bias = node.inputs[6] if len(node.inputs) > 6 else None
    shift = producer(source, "Sub")
    if shift is not None and (undone := _bias_without(node, constant_array(shift.inputs[1]), bias)) is not None:
        source, bias = shift.inputs[0], _constant(node, f"{scope}/bias", undone)
    weight = insert_before(
        node,
        "DequantizeLinear",
        [node.inputs[1], node.inputs[3]],
        {"axis": 1},
        name=f"{scope}/weight/DequantizeLinear",
    )
    product = insert_before(
        node, "MatMul", [source, weight.outputs[0]], name=f"{scope}/MatMul", metadata=node.metadata_props
    )
    if bias is not None:
        product = insert_before(node, "Add", [product.outputs[0], bias], name=f"{scope}/Add")
    take_over(node.outputs[0], product.outputs[0])


def _bias_without(node: ir.Node, z: np.ndarray | None, bias: ir.Value | None) -> np.ndarray | None:
    """Returns b of (x - z) W + (b + z W), which is x W + b: only a quantised input needs to be centred."""
    codes, scale = constant_array(node.inputs[1]), constant_array(node.inputs[3])
    given = constant_array(bias)
    if z is None or given is None or codes is None or scale is None or z.shape != codes.shape[:1]:
        return None
    moved = z.astype(np.float64) @ codes.astype(np.float64) * scale
    rest = given - moved
    # Both sums were rounded to FP32: what that leaves is no bias.
    return np.where(np.abs(rest) <= _ROUNDING * np.abs(moved).max(), 0, rest).astype(np.float32)


_ROUNDING = 1e-5


def _constant(node: ir.Node, name: str, bias: np.ndarray) -> ir.Value | None:
    assert node.graph is not None
    return add_constant(node.graph, name, bias) if bias.any() else None
