"""The decode form of a lowered graph: unquantised inputs on the same INT8 weights."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.onnxruntime.edits import insert_before, producer, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass


class WeightOnlyDecode(LoweringPass):
    """MatMulIntegerToFloat(Q_u8(x), W) -> MatMul(x, DequantizeLinear(W)), which ONNX Runtime makes MatMulNBits.

    A step of one token is bound by reading weights, and MatMulNBits reads them fastest. W stays the very initializer
    of the prefill form, [K, N]: both graphs read one file, and ONNX Runtime (1.32 and later) re-lays it when loading.
    """

    name = "weight-only-decode"

    def rewrite(self, graph: ir.Graph) -> None:
        """Gives each integer product its unquantised input back."""
        for node in list(graph):
            if node.op_type != "MatMulIntegerToFloat" or node.domain != MICROSOFT:
                continue
            quantize = producer(node.inputs[0], "QuantizeLinear")
            if quantize is None:
                self.skip(node, "its input is not quantised by a QuantizeLinear of its own")
                continue
            _replace(node, quantize.inputs[0])
            self.applied += 1


def _replace(node: ir.Node, source: ir.Value | None) -> None:
    scope = str(node.name).rpartition("/")[0]
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
    bias = node.inputs[6] if len(node.inputs) > 6 else None
    if bias is not None:
        product = insert_before(node, "Add", [product.outputs[0], bias], name=f"{scope}/Add")
    take_over(node.outputs[0], product.outputs[0])
