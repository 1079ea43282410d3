"""Quantised linears as one integer matrix product on the fast u8 x s8 kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_constant
from spikeexport.graphs.onnxruntime.edits import insert_before, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.weights import (
    MODULE_KEY,
    QuantizedWeight,
    StaticInput,
    is_linear,
    read_bias,
    read_static_input,
    read_weight,
)

SHIFT = 128
"""u8 = s8 + 128: the same integers, saturating at the same values, read by the kernels that are 6 to 9 x faster."""


class IntegerLinears(LoweringPass):
    """MatMul(DQ(Q(x)), DQ(W)) [+ bias] -> MatMulIntegerToFloat(Q_u8(x), W), one QuantizeLinear per input site.

    The integer product is exact, so only the FP32 rounding of the accumulation differs (the portable form rounds each
    product; this one rounds once).
    """

    name = "integer-linears"

    def rewrite(self, graph: ir.Graph) -> None:
        """Replaces each MatMul whose input is statically quantised and whose weight is INT8 per output channel."""
        quantized: dict[ir.Node, ir.Value] = {}
        for node in list(graph):
            if not is_linear(node):
                continue
            static_input, weight = read_static_input(node.inputs[0]), read_weight(node.inputs[1])
            if static_input is None:
                continue
            if weight is None:
                self.skip(node, "its weight is not INT8 [K, N] with one scale per output channel and zero point 0")
                continue
            if static_input.quantize not in quantized:
                quantized[static_input.quantize] = _quantize_to_u8(graph, static_input)
            self._replace(graph, node, static_input, weight, quantized[static_input.quantize])

    def _replace(
        self, graph: ir.Graph, node: ir.Node, static_input: StaticInput, weight: QuantizedWeight, codes: ir.Value
    ) -> None:
        bias = read_bias(node, weight.outputs)
        replaced = bias[0] if bias else node
        zero_point = codes.producer().inputs[2]  # type: ignore[union-attr]
        inputs = [codes, weight.codes, static_input.scale, weight.scale, zero_point, _zero_s8(graph)]
        product = insert_before(
            replaced,
            "MatMulIntegerToFloat",
            [*inputs, bias[1]] if bias else inputs,
            domain=MICROSOFT,
            name=f"{node.metadata_props.get(MODULE_KEY, node.name)}/MatMulIntegerToFloat",
            metadata=node.metadata_props,
        )
        take_over(replaced.outputs[0], product.outputs[0])
        self.applied += 1


def is_integer_product(node: ir.Node) -> bool:
    """Returns whether a node multiplies codes by INT8 weights."""
    return node.op_type == "MatMulIntegerToFloat" and node.domain == MICROSOFT


def _quantize_to_u8(graph: ir.Graph, static_input: StaticInput) -> ir.Value:
    quantize, shifted = static_input.quantize, static_input.zero_point + SHIFT
    zero_point = add_constant(graph, f"zero_point_u8_{shifted}", np.array(shifted, np.uint8))
    node = insert_before(
        quantize,
        "QuantizeLinear",
        [static_input.source, static_input.scale, zero_point],
        name=quantize.name,
        outputs=(f"{quantize.outputs[0].name}.u8",),
        dtype=ir.DataType.UINT8,
        metadata=quantize.metadata_props,
    )
    return node.outputs[0]


def _zero_s8(graph: ir.Graph) -> ir.Value:
    return add_constant(graph, "zero_point_s8_0", np.array(0, np.int8))
