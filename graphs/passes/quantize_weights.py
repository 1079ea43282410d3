"""Stores linears' weights as INT8 codes with a scale per output channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import PlanTensors, code_scales_name, codes_name
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.linears import named_matmuls, planned_matmul, stored_weight
from spikeexport.graphs.quantize import quantize_weight, weight_scales
from spikeexport.graphs.weights import LazyWeight, lazy_weight, set_weight


class QuantizeWeights(ir.passes.InPlacePass):
    """`<module>.weight_t` becomes DequantizeLinear(`<module>.weight_q` int8 [in, out], `<module>.weight_scale` [out]).

    Scales are float32, computed from the float32 weight after folds; codes are computed while the file is written.
    In an FP16 or BF16 graph a Cast follows the DequantizeLinear. Codes that were rounded with error compensation come
    from the plan's tensors with their scales.
    """

    def __init__(self, linears: Sequence[str], rounded: PlanTensors | None = None) -> None:
        """Takes module paths of the linears to store as INT8, and the tensors of a plan whose rounding is "gptq"."""
        self._linears = linears
        self._rounded = rounded

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            GraphError: A linear is not in the graph, or its weight holds NaN or infinity.
        """
        matmuls = named_matmuls(model.graph)
        modified = False
        for linear in self._linears:
            node = planned_matmul(matmuls, linear, "quantises")
            if f"{linear}.weight_q" not in model.graph.initializers:
                quantise_linear(model.graph, node, linear, self._rounded)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def quantise_linear(graph: ir.Graph, node: ir.Node, linear: str, rounded: PlanTensors | None = None) -> None:
    """Replaces the weight initializer of one MatMul by INT8 codes and a DequantizeLinear (plus Cast).

    Raises:
        GraphError: The weight is not an initializer, or holds NaN or infinity.
    """
    value = stored_weight(node, linear, "it cannot be stored as INT8")
    weight = lazy_weight(value)
    node.replace_input_with(1, insert_int8_weight(graph, node, linear, weight, rounded))
    if not value.uses():
        del graph.initializers[str(value.name)]


def insert_int8_weight(
    graph: ir.Graph, node: ir.Node, linear: str, weight: LazyWeight, rounded: PlanTensors | None = None
) -> ir.Value:
    """Inserts codes, scales and DequantizeLinear (plus Cast to the weight's type) before `node`.

    Args:
        graph: The graph, changed in place.
        node: The MatMul.
        linear: Module path, used in names.
        weight: [in, out].
        rounded: Holds the codes and scales; None = the nearest codes.

    Returns:
        The dequantised weight [in, out] in the weight's type.

    Raises:
        GraphError: The weight holds NaN or infinity, or the codes have another shape.
    """
    scales, compute_codes = _nearest(linear, weight) if rounded is None else _given(linear, weight, rounded)
    shape = weight.shape
    codes = ir.LazyTensor(
        lambda: ir.tensor(compute_codes()),
        dtype=ir.DataType.INT8,
        shape=shape,
        name=f"{linear}.weight_q",
    )
    put = NodeInserter(graph, node)
    quantised = set_weight(graph, codes)
    scale = put.constant(f"{linear}.weight_scale", scales)
    zero = put.constant(f"{linear}.weight_zero_point", np.zeros(scales.shape, np.int8))
    result = put(
        "DequantizeLinear",
        quantised,
        scale,
        zero,
        name=f"{linear}/weight/DequantizeLinear",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        axis=1,
    )
    if weight.dtype == ir.DataType.FLOAT:
        return result
    return put("Cast", result, name=f"{linear}/weight/Cast", dtype=weight.dtype, shape=shape, to=weight.dtype)


def dequantised(linear: str, weight: LazyWeight, rounded: PlanTensors | None = None) -> np.ndarray:
    """Returns what `insert_int8_weight` makes a weight, float32 [in, out]; arguments and errors as there."""
    scales, compute_codes = _nearest(linear, weight) if rounded is None else _given(linear, weight, rounded)
    return compute_codes().astype(np.float32) * scales


def _nearest(linear: str, weight: LazyWeight) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
    try:
        scales = weight_scales(weight.read_float32())
    except ValueError as error:
        raise GraphError(f"{linear}: {error}: the checkpoint is damaged.") from None
    return scales, lambda: quantize_weight(weight.read_float32(), scales)


def _given(linear: str, weight: LazyWeight, rounded: PlanTensors) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
    codes, scales = rounded.get(codes_name(linear)), rounded.get(code_scales_name(linear))
    expected = tuple(weight.shape.numpy())
    if codes is None or scales is None or codes.shape != expected or scales.shape != expected[1:]:
        found = None if codes is None else list(codes.shape)
        raise GraphError(
            f"{linear}: the plan's codes have shape {found}, the graph's weight {list(expected)}: make the plan again "
            "for this model."
        )
    return scales, lambda: codes
