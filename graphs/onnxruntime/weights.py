"""Reading a linear's INT8 weight and its static activation Q/DQ out of the portable graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import constant_array, constant_shape
from spikeexport.graphs.onnxruntime.edits import only_reader, producer

MODULE_KEY = "spikeexport.module"
"""Metadata of a linear's node: the checkpoint's module path; several paths of a packed linear are joined by spaces."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight stored as symmetric INT8 with one scale per output channel.

    Attributes:
        codes: The initializer, int8 [K, N].
        scale: Its scale's initializer, float32 [N].
        inputs: K.
        outputs: N.
    """

    codes: ir.Value
    scale: ir.Value
    inputs: int
    outputs: int


@dataclass(frozen=True)
class StaticInput:
    """An activation quantised per tensor with a static scale.

    Attributes:
        quantize: The QuantizeLinear node.
        source: The unquantised activation.
        scale: float32 scalar initializer.
        zero_point: int8 zero point (0 in what export writes).
    """

    quantize: ir.Node
    source: ir.Value
    scale: ir.Value
    zero_point: int


def read_weight(value: ir.Value | None) -> QuantizedWeight | None:
    """Returns the INT8 weight behind `value` (DequantizeLinear over columns, zero point 0), or None."""
    node = producer(value, "DequantizeLinear")
    if node is None or "block_size" in node.attributes:
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    shape, scale_shape = constant_shape(codes), constant_shape(scale)
    if codes is None or scale is None or shape is None or len(shape) != 2 or codes.dtype != ir.DataType.INT8:
        return None
    if scale_shape != (shape[1],) or node.attributes.get_int("axis", 1) not in (1, -1):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = constant_array(node.inputs[2])
        if zero_point is None or np.any(zero_point):
            return None
    return QuantizedWeight(codes, scale, shape[0], shape[1])


def read_static_input(value: ir.Value | None) -> StaticInput | None:
    """Returns the static per-tensor INT8 Q/DQ pair behind `value`, or None."""
    dequantize = producer(value, "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
    if dequantize is None or quantize is None or len(quantize.inputs) < 3 or len(dequantize.inputs) < 3:
        return None
    source, scale = quantize.inputs[0], quantize.inputs[1]
    zero_points = [constant_array(node.inputs[2]) for node in (quantize, dequantize)]
    scales = [constant_array(node.inputs[1]) for node in (quantize, dequantize)]
    if any(array is None or array.size != 1 for array in (*zero_points, *scales)):
        return None
    if zero_points[0].dtype != np.int8 or zero_points[0] != zero_points[1] or scales[0] != scales[1]:  # type: ignore[union-attr]
        return None
    assert source is not None
    assert scale is not None
    assert zero_points[0] is not None
    return StaticInput(quantize, source, scale, int(zero_points[0]))


def read_bias(matmul: ir.Node, outputs: int) -> tuple[ir.Node, ir.Value] | None:
    """Returns the Add behind `matmul` and its constant bias [N], or None when there is none."""
    add = only_reader(matmul.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return None
    for value in add.inputs:
        if value is not matmul.outputs[0] and value is not None and constant_shape(value) == (outputs,):
            return add, value
    return None


def is_linear(node: ir.Node) -> bool:
    """Whether `node` is a MatMul."""
    return node.op_type == "MatMul" and not node.domain
