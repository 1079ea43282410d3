"""How the two inputs of a matrix product are quantised: the Q/DQ chain above each, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

PASS_THROUGH = ("Cast", "Reshape", "Transpose", "Identity", "Unsqueeze", "Squeeze")
"""Operators between a DequantizeLinear and the product that leave the values as they are."""


@dataclass(frozen=True)
class DequantizedInput:
    """A product's input that comes from a DequantizeLinear.

    Attributes:
        dequantize: The DequantizeLinear.
        quantize: The QuantizeLinear above it, or None where the codes are a constant.
        scale: The scale's values, or None where it is computed at run time.
        axis: Axis of a per-channel scale in the codes' own shape; None for per-tensor.
        axis_at_product: The same axis where the product reads it (transposes followed), counted from the end.
        between: Operators between the DequantizeLinear and the product, nearest to the product first.
    """

    dequantize: ir.Node
    quantize: ir.Node | None
    scale: np.ndarray | None
    axis: int | None
    axis_at_product: int | None
    between: tuple[ir.Node, ...]


def dequantized_input(value: ir.Value | None) -> DequantizedInput | None:
    """Returns how `value` was dequantised, looking through operators that only move or cast; None if it was not."""
    between: list[ir.Node] = []
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in PASS_THROUGH:
        between.append(node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale = constant_value(node.inputs[1])
    axis = _channel_axis(node, scale)
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    quantize = source if source is not None and source.op_type == "QuantizeLinear" else None
    return DequantizedInput(node, quantize, scale, axis, _follow_axis(axis, node, between), tuple(between))


def constant_value(value: ir.Value | None) -> np.ndarray | None:
    """Returns the value of an initializer or a Constant node as an array; None for anything computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    if node is not None and node.op_type == "Identity":
        return constant_value(node.inputs[0])
    return None


def is_constant(value: ir.Value | None) -> bool:
    """Says whether a value is known ahead of time, without reading it."""
    if value is None:
        return False
    node = value.producer()
    return value.const_value is not None or (node is not None and node.op_type == "Constant")


def dtype_of(value: ir.Value | None, depth: int = 12) -> ir.DataType | None:
    """Returns a value's element type, inferred through the operators of a decoder where it is not written down."""
    if value is None or depth == 0:
        return None
    if value.dtype is not None:
        return value.dtype
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "DequantizeLinear":
        return dtype_of(node.inputs[1], depth - 1)
    if node.op_type == "Where":
        return dtype_of(node.inputs[1], depth - 1)
    if node.op_type == "Gather":
        return dtype_of(node.inputs[0], depth - 1)
    return next((found for item in node.inputs if (found := dtype_of(item, depth - 1)) is not None), None)


def _channel_axis(node: ir.Node, scale: np.ndarray | None) -> int | None:
    shape = scale.shape if scale is not None else tuple(node.inputs[1].shape or ()) if node.inputs[1] else ()
    if len(shape) == 0 or (len(shape) == 1 and shape[0] == 1):
        return None
    attribute = node.attributes.get("axis")
    return attribute.as_int() if attribute is not None else 1


def _follow_axis(axis: int | None, node: ir.Node, between: list[ir.Node]) -> int | None:
    """Returns the axis counted from the end after the transposes on the way; None when a reshape hides it."""
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    if axis is None or rank is None:
        return None
    axis = axis % rank
    for step in reversed(between):
        if step.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
            return None
        if step.op_type == "Transpose":
            attribute = step.attributes.get("perm")
            order = list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))
            axis = order.index(axis)
    return axis - rank
