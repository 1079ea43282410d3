"""Gives excluded linears the floating-point precision that the plan asks for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.records.plan import Exclusion
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.float8_linear import set_float8
from spikeexport.graphs.passes.linears import named_matmuls, planned_matmul
from spikeexport.graphs.weights import LazyWeight, lazy_weight

_DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}


class KeepExcluded(ir.passes.InPlacePass):
    """Excluded linears of precision fp16, bf16 or fp32 keep a floating-point weight of that type.

    Where it differs from the graph's type, the MatMul's input is cast to it and the result back. "fp8" puts E4M3 Q/DQ
    on input and weight; "w8a16" is left to `QuantizeWeights`.
    """

    def __init__(self, excluded: Sequence[Exclusion]) -> None:
        """Takes the plan's exclusions."""
        self._excluded = excluded

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            GraphError: An excluded linear is not in the graph, or it has no scale for FP8.
        """
        matmuls = named_matmuls(model.graph)
        modified = False
        for exclusion in self._excluded:
            node = planned_matmul(matmuls, exclusion.linear, "excludes")
            if exclusion.precision == "w8a16":
                continue
            if exclusion.precision == "fp8":
                modified |= set_float8(model.graph, node, exclusion)
                continue
            modified |= _set_precision(model.graph, node, exclusion.linear, _DTYPES[exclusion.precision])
        if any(exclusion.precision == "fp8" for exclusion in self._excluded):
            say(
                "FP8 linears need a GPU of compute capability 8.9 or later in TensorRT; ONNX Runtime computes their "
                "rounded values in floating point."
            )
        return ir.passes.PassResult(model, modified=modified)


def _set_precision(graph: ir.Graph, node: ir.Node, linear: str, dtype: ir.DataType) -> bool:
    value, source, output = node.inputs[1], node.inputs[0], node.outputs[0]
    if value is None or source is None or not value.is_initializer() or value.dtype == dtype:
        return False
    weight, before = lazy_weight(value), output.dtype
    value.const_value = LazyWeight(str(value.name), weight.read_float32, weight.shape.numpy(), dtype)
    value.type = ir.TensorType(dtype)
    put = NodeInserter(graph, node)
    node.replace_input_with(
        0, put("Cast", source, name=f"{linear}/CastInput", dtype=dtype, shape=source.shape, to=dtype)
    )
    output.type = ir.TensorType(dtype)
    cast = ir.node("Cast", [output], attributes={"to": before}, name=f"{linear}/CastOutput")
    graph.insert_after(node, cast)
    cast.outputs[0].name, cast.outputs[0].shape = f"{linear}/CastOutput/output", output.shape
    cast.outputs[0].type = ir.TensorType(before)  # type: ignore[arg-type]
    for reader, index in list(output.uses()):
        if reader is not cast:
            reader.replace_input_with(index, cast.outputs[0])
    return True
