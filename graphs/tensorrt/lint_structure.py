"""Rules about attention, normalisation and operators that TensorRT's parser does not take."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.tensorrt.decompose_attention import soft_cap
from spikeexport.graphs.tensorrt.findings import Rule, Surroundings
from spikeexport.graphs.tensorrt.qdq import constant_value, dequantized_input, dtype_of
from spikeexport.graphs.tensorrt.roles import attention_parts

OLDEST_OPSET, NEWEST_OPSET = 9, 25
_UNSUPPORTED = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "NonZero")
_PAST_INPUTS = slice(4, 6)


def _caches_inside(node: ir.Node, _: Surroundings) -> str | None:
    past = [value for value in node.inputs[_PAST_INPUTS] if value is not None]
    used = [value for value in node.outputs if value.name and (value.uses() or value.is_graph_output())]
    if not past and len(used) <= 1:
        return None
    return f"Attention with {len(past)} past inputs and {len(used)} outputs, only one output is accepted"


def _full_precision(node: ir.Node, _: Surroundings) -> str | None:
    if not attention_parts(node) or dtype_of(node.inputs[0]) != ir.DataType.FLOAT:
        return None
    return "the attention is computed in FP32"


def _capped_scores(node: ir.Node, _: Surroundings) -> str | None:
    cap = soft_cap(node)
    return f"its scores are capped at {cap:g}, which no fused attention does" if cap else None


def _quantized_operands(node: ir.Node, _: Surroundings) -> str | None:
    products = [part for part in attention_parts(node) if part.op_type == "MatMul"]
    if not any(dequantized_input(value) for product in products for value in product.inputs):
        return None
    return "Q/DQ on the operands of a decomposed attention"


def _grouped_in_five_axes(node: ir.Node, _: Surroundings) -> str | None:
    products = [part for part in attention_parts(node) if part.op_type == "MatMul"]
    if not any(_rank(value) == 5 for product in products for value in product.inputs):
        return None
    return "the heads of a group are an axis of their own: products with 5 axes"


def _rank(value: ir.Value | None) -> int | None:
    if value is None:
        return None
    if value.shape is not None:
        return len(value.shape)
    node = value.producer()
    if node is None:
        return None
    if node.op_type in ("Reshape", "Expand"):
        target = constant_value(node.inputs[1])
        return len(target) if target is not None else None
    if node.op_type in ("Transpose", "Cast", "Mul", "Concat"):
        return _rank(node.inputs[0])
    return None


def _squares_in_half(node: ir.Node, _: Surroundings) -> str | None:
    square = node.inputs[0].producer() if node.inputs[0] is not None else None
    if square is None or dtype_of(node.inputs[0]) != ir.DataType.FLOAT16:
        return None
    if square.op_type == "Pow" or (square.op_type == "Mul" and square.inputs[0] is square.inputs[1]):
        return "a decomposed norm squares in FP16, which overflows at |x| > 255 on massive activations"
    return None


def _unsupported(node: ir.Node, _: Surroundings) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"operator {node.domain}::{node.op_type} is no standard ONNX operator"
    return f"operator {node.op_type} is not supported" if node.op_type in _UNSUPPORTED else None


RULES = (
    Rule(
        "unsupported-operator",
        "refused",
        (),
        _unsupported,
        "use explicit Q/DQ and standard operators (export writes them)",
    ),
    Rule(
        "cache-inside-attention",
        "refused",
        ("Attention",),
        _caches_inside,
        "concatenate the past before Attention and give it one output",
    ),
    Rule(
        "full-precision-attention",
        "unfused",
        ("Attention", "Softmax"),
        _full_precision,
        "export with --dtype fp16 or bf16",
    ),
    Rule(
        "capped-attention",
        "unfused",
        ("Attention",),
        _capped_scores,
        "nothing to change: build writes it out in products and a softmax",
    ),
    Rule(
        "quantized-attention",
        "unfused",
        ("Softmax",),
        _quantized_operands,
        "leave queries, keys, probabilities and values in floating point",
    ),
    Rule(
        "grouped-in-five-axes",
        "unfused",
        ("Softmax",),
        _grouped_in_five_axes,
        "use the Attention operator, which groups natively, or repeat keys and values to four axes",
    ),
    Rule(
        "half-precision-square",
        "warning",
        ("ReduceMean",),
        _squares_in_half,
        "use RMSNormalization, or compute the norm in FP32",
    ),
)
