"""Faults planted into a portable graph: each is a pattern that TensorRT refuses, splits or leaves in floating point."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.passes.linears import decoder_matmuls


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers[name] = value
    return value


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def weight_along_inputs(model: ir.Model, linear: str) -> None:
    """Gives a weight one scale per input channel."""
    node = _node(model, f"{linear}/weight/DequantizeLinear")
    rows = node.inputs[0].shape[0]
    node.replace_input_with(1, _constant(model, f"{linear}.row_scale", np.full(rows, 0.01, np.float32)))
    node.replace_input_with(2, _constant(model, f"{linear}.row_zero_point", np.zeros(rows, np.int8)))
    node.attributes["axis"] = ir.AttrInt64("axis", 0)


def activation_per_channel(model: ir.Model, site: str) -> None:
    """Gives an input one scale per channel."""
    channels = decoder_matmuls(model.graph)[site].inputs[1].producer().inputs[0].producer().inputs[0].shape[0]
    scale = _constant(model, f"{site}.channel_scale", np.full(channels, 0.05, np.float32))
    zero_point = _constant(model, f"{site}.channel_zero_point", np.zeros(channels, np.int8))
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        node = _node(model, f"{site}/input/{operator}")
        node.replace_input_with(1, scale)
        node.replace_input_with(2, zero_point)
        node.attributes["axis"] = ir.AttrInt64("axis", 2)


def float_activation(model: ir.Model, linear: str) -> None:
    """Feeds a linear with its input from before the quantiser."""
    quantizer = _node(model, f"{linear}/input/QuantizeLinear")
    before = quantizer.inputs[0].producer().inputs[0]
    decoder_matmuls(model.graph)[linear].replace_input_with(0, before)


def float_weight(model: ir.Model, linear: str) -> None:
    """Stores a weight in floating point."""
    node = decoder_matmuls(model.graph)[linear]
    codes = _node(model, f"{linear}/weight/DequantizeLinear").inputs[0]
    weight = codes.const_value.numpy().astype(np.float16) * np.float16(0.01)
    node.replace_input_with(1, _constant(model, f"{linear}.float_weight", weight))


def zero_point(model: ir.Model, site: str, value: np.ndarray) -> None:
    """Gives an input's quantiser another zero point."""
    constant = _constant(model, f"{site}.other_zero_point", value)
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        _node(model, f"{site}/input/{operator}").replace_input_with(2, constant)


def no_zero_point(model: ir.Model, site: str) -> None:
    """Takes an input's zero point away."""
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        _node(model, f"{site}/input/{operator}").resize_inputs(2)


def input_scale(model: ir.Model, site: str, value: np.ndarray) -> None:
    """Gives an input's quantiser another scale."""
    constant = _constant(model, f"{site}.other_scale", value)
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        _node(model, f"{site}/input/{operator}").replace_input_with(1, constant)


def computed_scale(model: ir.Model, site: str) -> None:
    """Computes an input's scale at run time from its largest magnitude."""
    quantizer = _node(model, f"{site}/input/QuantizeLinear")
    source = quantizer.inputs[0]
    graph = model.graph
    magnitude = ir.node("Abs", [source], name=f"{site}/magnitude")
    largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0}, name=f"{site}/largest")
    factor = _constant(model, f"{site}.factor", np.array(1 / 127, np.float32))
    scale = ir.node("Mul", [largest.outputs[0], factor], name=f"{site}/scale")
    graph.insert_before(quantizer, [magnitude, largest, scale])
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        _node(model, f"{site}/input/{operator}").replace_input_with(1, scale.outputs[0])


def attention_with_cache(model: ir.Model) -> str:
    """Hands the past to the first Attention operator itself; returns the operator's name."""
    attention = next(node for node in model.graph if node.op_type == "Attention")
    past = [value for value in model.graph.inputs if value.name.startswith("past_key_values.0.")]
    attention.resize_inputs(6)
    for index, value in enumerate(past):
        attention.replace_input_with(4 + index, value)
    return str(attention.name)


def idle_quantizer(model: ir.Model, linear: str) -> None:
    """Rounds a residual's values: a pair that no product reads."""
    add = next(node for node in model.graph if node.op_type == "Add" and node.name.endswith("layers.0/Add"))
    scale = _constant(model, "idle.scale", np.array(0.05, np.float32))
    zero = _constant(model, "idle.zero_point", np.array(0, np.int8))
    to_float = ir.node("Cast", [add.inputs[1]], {"to": ir.DataType.FLOAT}, name="idle/CastToFloat")
    quantize = ir.node("QuantizeLinear", [to_float.outputs[0], scale, zero], name="idle/QuantizeLinear")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name="idle/DequantizeLinear")
    back = ir.node("Cast", [dequantize.outputs[0]], {"to": ir.DataType.FLOAT16}, name="idle/CastBack")
    model.graph.insert_before(add, [to_float, quantize, dequantize, back])
    add.replace_input_with(1, back.outputs[0])


def unlike_scales(model: ir.Model, linear: str) -> None:
    """Gives a weight FP16 scales beside an input with an FP32 scale."""
    node = _node(model, f"{linear}/weight/DequantizeLinear")
    half = node.inputs[1].const_value.numpy().astype(np.float16)
    node.replace_input_with(1, _constant(model, f"{linear}.half_scale", half))
