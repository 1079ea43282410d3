"""Linears whose input stays unquantised as MatMulNBits: INT8 weights that are read as they are, never widened."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_lazy_constant, constant_array
from spikeexport.graphs.onnxruntime.edits import insert_before, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.weights import (
    MODULE_KEY,
    QuantizedWeight,
    is_linear,
    read_bias,
    read_static_input,
    read_weight,
)

BLOCK = 64
"""Input channels per block of MatMulNBits."""

ACCURACY_FP32 = 1
"""MatMulNBits computes with dequantised weights in FP32."""

ACCURACY_INT8 = 4
"""MatMulNBits quantises each block of the input to INT8 at run time: the fast form."""


class WeightOnlyLinears(LoweringPass):
    """MatMul(x, DQ(W)) [+ bias] -> MatMulNBits (8 bits) with the channel's scale repeated over its blocks.

    The dequantised weights are exactly the same; with `accuracy` 4 the kernel rounds the input of each block to INT8.
    """

    name = "weight-only-linears"

    def __init__(self, accuracy: int = ACCURACY_INT8) -> None:
        super().__init__()
        self.accuracy = accuracy

    def rewrite(self, graph: ir.Graph) -> None:
        """Replaces each MatMul with an INT8 weight and an input that is not quantised."""
        for node in list(graph):
            if not is_linear(node) or read_static_input(node.inputs[0]) is not None:
                continue
            weight = read_weight(node.inputs[1])
            if weight is not None:
                self._replace(graph, node, weight)

    def _replace(self, graph: ir.Graph, node: ir.Node, weight: QuantizedWeight) -> None:
        bias = read_bias(node, weight.outputs)
        replaced = bias[0] if bias else node
        product = insert_before(
            replaced,
            "MatMulNBits",
            block_inputs(graph, node.inputs[0], weight) + ([None, None, bias[1]] if bias else []),
            nbits_attributes(weight.inputs, weight.outputs, BLOCK, self.accuracy),
            domain=MICROSOFT,
            name=f"{node.metadata_props.get(MODULE_KEY, node.name)}/MatMulNBits",
            metadata=node.metadata_props,
        )
        take_over(replaced.outputs[0], product.outputs[0])
        self.applied += 1


def nbits_attributes(inputs: int, outputs: int, block: int, accuracy: int) -> dict[str, int]:
    """Returns MatMulNBits' attributes for an 8-bit weight [N, K]."""
    return {"K": inputs, "N": outputs, "bits": 8, "block_size": block, "accuracy_level": accuracy}


def block_inputs(graph: ir.Graph, source: ir.Value | None, weight: QuantizedWeight) -> list[ir.Value | None]:
    """Returns MatMulNBits' A, B uint8 [N, blocks, block] (zero point 128) and scales float32 [N, blocks]."""
    blocks = -(-weight.inputs // BLOCK)
    codes = add_lazy_constant(
        graph,
        f"{weight.codes.name}.blocks",
        lambda: blocked_codes(_array(weight.codes), BLOCK),
        ir.DataType.UINT8,
        (weight.outputs, blocks, BLOCK),
    )
    scales = add_lazy_constant(
        graph,
        f"{weight.scale.name}.blocks",
        lambda: np.repeat(_array(weight.scale).astype(np.float32)[:, None], blocks, axis=1),
        ir.DataType.FLOAT,
        (weight.outputs, blocks),
    )
    return [source, codes, scales]


def blocked_codes(codes: np.ndarray, block: int) -> np.ndarray:
    """Returns int8 codes [K, N] as uint8 [N, ceil(K / block), block] with zero point 128, padded with zeros."""
    inputs, outputs = codes.shape
    blocks = -(-inputs // block)
    shifted = np.full((outputs, blocks * block), 128, np.uint8)
    shifted[:, :inputs] = codes.T.view(np.uint8) ^ 0x80
    return shifted.reshape(outputs, blocks, block)


def _array(value: ir.Value) -> np.ndarray:
    array = constant_array(value)
    assert array is not None, f"{value.name} is a constant"
    return array
