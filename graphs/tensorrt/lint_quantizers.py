"""Rules about QuantizeLinear and DequantizeLinear nodes themselves: zero points, scales, operator sets."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.tensorrt.findings import Rule, Surroundings
from spikeexport.graphs.tensorrt.qdq import constant_value, dtype_of

FP16_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
_LAST_OPSET_WITHOUT_FP16_QDQ = 18
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _missing_zero_point(node: ir.Node, _: Surroundings) -> str | None:
    if _zero_point(node) is not None or "output_dtype" in node.attributes:
        return None
    return "QuantizeLinear without a zero point: TensorRT reads INT8 codes, ONNX says UINT8"


def _nonzero_zero_point(node: ir.Node, _: Surroundings) -> str | None:
    values = constant_value(_zero_point(node))
    if values is None or not np.any(values.astype(np.int32)):
        return None
    return f"zero point {int(values.flat[0])}, only 0 is accepted"


def _unsigned_codes(node: ir.Node, _: Surroundings) -> str | None:
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else _zero_point(node)
    if codes is not None and codes.dtype == ir.DataType.UINT8:
        return "UINT8 codes"
    return None


def _invalid_scale(node: ir.Node, _: Surroundings) -> str | None:
    scale = constant_value(node.inputs[1])
    if scale is None:
        return None
    values = scale.astype(np.float64)
    bad = ~(np.isfinite(values) & (values > 0))
    return f"{int(bad.sum())} of {values.size} scales are not finite and > 0" if bad.any() else None


def _subnormal_scale(node: ir.Node, _: Surroundings) -> str | None:
    scale = constant_value(node.inputs[1])
    if scale is None or scale.dtype != np.float16:
        return None
    small = (scale > 0) & (scale.astype(np.float64) < FP16_SMALLEST_NORMAL)
    return (
        f"{int(small.sum())} of {scale.size} FP16 scales are below {FP16_SMALLEST_NORMAL:.1e}" if small.any() else None
    )


def _half_scale(node: ir.Node, _: Surroundings) -> str | None:
    if dtype_of(node.inputs[1]) != ir.DataType.FLOAT16:
        return None
    return "FP16 scale: the INT8 product leaves in FP16 and scale x scale is applied to it as a rounded FP16 vector"


def _computed_scale(node: ir.Node, _: Surroundings) -> str | None:
    return None if constant_value(node.inputs[1]) is not None else "the scale is computed at run time"


def _half_at_old_opset(node: ir.Node, around: Surroundings) -> str | None:
    value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.inputs[1]
    if around.opset > _LAST_OPSET_WITHOUT_FP16_QDQ or dtype_of(value) != ir.DataType.FLOAT16:
        return None
    return (
        f"FP16 {node.op_type} at opset {around.opset}: TensorRT takes it, the ONNX checker and ONNX Runtime refuse it"
    )


def _mixed_types(node: ir.Node, _: Surroundings) -> str | None:
    value, scale = dtype_of(node.inputs[0]), dtype_of(node.inputs[1])
    if value != ir.DataType.FLOAT16 or scale != ir.DataType.FLOAT:
        return None
    return "FP16 input with an FP32 scale: TensorRT takes it, ONNX Runtime's CPU kernels do not"


RULES = (
    Rule(
        "missing-zero-point",
        "warning",
        ("QuantizeLinear",),
        _missing_zero_point,
        "give it an int8 zero point of 0",
    ),
    Rule(
        "nonzero-zero-point",
        "refused",
        _QDQ,
        _nonzero_zero_point,
        "quantise symmetrically: int8 codes, zero point 0",
    ),
    Rule("unsigned-codes", "refused", _QDQ, _unsigned_codes, "quantise symmetrically: int8 codes, zero point 0"),
    Rule(
        "invalid-scale",
        "refused",
        _QDQ,
        _invalid_scale,
        "calibrate again: a channel of zeros needs a small positive scale",
    ),
    Rule("subnormal-scale", "warning", _QDQ, _subnormal_scale, "keep scales in FP32 and cast after DequantizeLinear"),
    Rule("half-scale", "warning", _QDQ, _half_scale, "keep scales in FP32 and cast after DequantizeLinear"),
    Rule("computed-scale", "fallback", _QDQ, _computed_scale, "use a static scale from calibration"),
    Rule("half-at-old-opset", "warning", _QDQ, _half_at_old_opset, "declare opset 19 or later"),
    Rule("mixed-types", "warning", ("QuantizeLinear",), _mixed_types, "cast the input to FP32 before QuantizeLinear"),
)
