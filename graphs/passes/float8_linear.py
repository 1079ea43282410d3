"""One linear in FP8 E4M3: Q/DQ on its input and its weight, both per tensor."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import Exclusion
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.linears import stored_weight
from spikeexport.graphs.quantize import check_activation_scale
from spikeexport.graphs.weights import lazy_weight, set_weight

FLOAT8 = ir.DataType.FLOAT8E4M3FN
FLOAT8_MAX = 448.0


def set_float8(graph: ir.Graph, node: ir.Node, exclusion: Exclusion) -> bool:
    """Puts QuantizeLinear / DequantizeLinear in E4M3 on the input of a MatMul and stores its weight in E4M3.

    Scales are float32 and per tensor: absmax falls on 448. TensorRT makes one FP8 product of it on SM89 and later;
    ONNX Runtime computes with the rounded values in floating point.

    Raises:
        GraphError: The plan has no usable scale for the linear, or its weight is computed in the graph.
    """
    linear = exclusion.linear
    if f"{linear}.weight_f8" in graph.initializers:
        return False
    if exclusion.scale is None:
        raise GraphError(f"{linear}: the plan has no FP8 scale for it: make the plan again.")
    check_activation_scale(exclusion.scale, linear)
    value, source = stored_weight(node, linear, "it cannot be stored as FP8"), node.inputs[0]
    assert source is not None
    weight = lazy_weight(value)
    step = np.array(max(float(np.abs(weight.read_float32()).max()), 1e-30) / FLOAT8_MAX, np.float32)
    codes = ir.LazyTensor(
        lambda: ir.Tensor((weight.read_float32() / step).astype(ml_dtypes.float8_e4m3fn), dtype=FLOAT8),
        dtype=FLOAT8,
        shape=weight.shape,
        name=f"{linear}.weight_f8",
    )
    put = NodeInserter(graph, node)
    stored, weight_step = set_weight(graph, codes), put.constant(f"{linear}.weight_scale", step)
    node.replace_input_with(1, _dequantize(put, stored, weight_step, weight.dtype, f"{linear}/weight"))
    node.replace_input_with(0, _through_float8(put, source, np.array(exclusion.scale, np.float32), linear))
    if not value.uses():
        del graph.initializers[str(value.name)]
    return True


def _through_float8(put: NodeInserter, source: ir.Value, step: np.ndarray, linear: str) -> ir.Value:
    scale, scope = put.constant(f"{linear}.input_scale", step), f"{linear}/input"
    value, shape = source, source.shape
    if source.dtype != ir.DataType.FLOAT:
        value = put("Cast", value, name=f"{scope}/CastToFloat", dtype=ir.DataType.FLOAT, shape=shape, to=1)
    zero = put.constant(f"{linear}.input_zero_point", np.zeros((), ml_dtypes.float8_e4m3fn))
    value = put("QuantizeLinear", value, scale, zero, name=f"{scope}/QuantizeLinear", dtype=FLOAT8, shape=shape)
    return _dequantize(put, value, scale, source.dtype, scope)


def _dequantize(put: NodeInserter, value: ir.Value, scale: ir.Value, dtype: ir.DataType | None, scope: str) -> ir.Value:
    shape = value.shape
    result = put(
        "DequantizeLinear", value, scale, name=f"{scope}/DequantizeLinear", dtype=ir.DataType.FLOAT, shape=shape
    )
    if dtype == ir.DataType.FLOAT or dtype is None:
        return result
    return put("Cast", result, name=f"{scope}/CastBack", dtype=dtype, shape=shape, to=dtype)
