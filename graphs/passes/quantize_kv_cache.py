"""Stores the KV cache as INT8: Q/DQ on present and past, whose inputs and outputs become int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.records.plan import PlanTensors, kv_scale_name
from spikeexport.graphs.insertion import NodeInserter

_PAST, _PRESENT = "past_key_values.", "present."


class QuantizeKvCache(ir.passes.InPlacePass):
    """present = Concat(past, Q(new / s)); attention reads [prefix,] s * DQ(present).

    One symmetric scale per head and channel, which no single axis of [batch, kv_heads, tokens, D] can carry: a Mul by
    1 / s [kv_heads, 1, D] stands in front of QuantizeLinear, a Mul by s behind DequantizeLinear, and the pair itself
    has scale 1. All in FP32, cast to the graph's type behind. A step's own tokens are read as the codes say, too, so
    that a prompt gives the same in one call and in several. The prefix stays in floating point.
    """

    def __init__(self, scales: PlanTensors) -> None:
        """Takes the plan's tensors, with `kv.{layer}.key/value` float32 [kv_heads, D]."""
        self._scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            PlanError: A layer has no scales, or scales of another shape than its cache.
        """
        graph, modified = model.graph, False
        for past in [value for value in graph.inputs if str(value.name).startswith(_PAST)]:
            if past.dtype != ir.DataType.INT8:
                _quantize(graph, past, self._scale_of(past))
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _scale_of(self, past: ir.Value) -> np.ndarray:
        layer, kind = str(past.name).removeprefix(_PAST).split(".")
        name = kv_scale_name(int(layer), kind)
        scale = self._scales.get(name)
        expected = tuple(past.shape[axis] for axis in (1, 3)) if past.shape is not None else ()
        if scale is None or scale.shape != expected:
            found = "none" if scale is None else list(scale.shape)
            raise PlanError(
                f"The plan's KV cache scales {name} have shape {found}, the graph's cache {list(expected)}: "
                "make the plan again for this model."
            )
        return scale


def _quantize(graph: ir.Graph, past: ir.Value, scale: np.ndarray) -> None:
    name = f"kv.{str(past.name).removeprefix(_PAST)}"
    present = next(value for value in graph.outputs if value.name == str(past.name).replace(_PAST, _PRESENT))
    joined = present.producer()
    assert joined is not None, "the cache is open: present is Concat(past, new)"
    dtype, new = past.dtype, joined.inputs[1]
    put = NodeInserter(graph, joined)
    codes = _codes(put, new, scale, name)
    readers = list(past.uses())
    joined.replace_input_with(1, codes)
    past.type = present.type = ir.TensorType(ir.DataType.INT8)
    after = [node for node in (use.node for use in readers) if node is not joined]
    anchor = after[0] if after else next(iter(present.uses())).node
    values = _values(NodeInserter(graph, anchor), present, scale, name, dtype)
    if not after:
        # Without a prefix, attention read the present itself.
        for use in [use for use in present.uses() if use.node.op_type != "DequantizeLinear"]:
            use.node.replace_input_with(use.idx, values)
    for node in after:
        # Concat(prefix, past, new) -> Concat(prefix, values)
        whole = ir.node("Concat", [node.inputs[0], values], {"axis": 2}, name=node.name)
        graph.insert_before(node, whole)
        whole.outputs[0].type = node.outputs[0].type
        node.outputs[0].replace_all_uses_with(whole.outputs[0])
        graph.remove(node, safe=True)


def _codes(put: NodeInserter, new: ir.Value | None, scale: np.ndarray, name: str) -> ir.Value:
    assert new is not None, "present is Concat(past, new)"
    value = new
    if new.dtype != ir.DataType.FLOAT:
        value = put("Cast", value, name=f"{name}/CastToFloat", dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    inverse = put.constant(f"{name}.inverse_scale", (1 / scale).astype(np.float32)[:, None])
    value = put("Mul", value, inverse, name=f"{name}/by_inverse_scale", dtype=ir.DataType.FLOAT)
    one, zero = put.constant("kv.one", np.float32(1)), put.constant("kv.zero_point", np.int8(0))
    return put("QuantizeLinear", value, one, zero, name=f"{name}/QuantizeLinear", dtype=ir.DataType.INT8)


def _values(put: NodeInserter, present: ir.Value, scale: np.ndarray, name: str, dtype: ir.DataType | None) -> ir.Value:
    one, zero = put.constant("kv.one", np.float32(1)), put.constant("kv.zero_point", np.int8(0))
    value = put("DequantizeLinear", present, one, zero, name=f"{name}/DequantizeLinear", dtype=ir.DataType.FLOAT)
    factor = put.constant(f"{name}.scale", scale.astype(np.float32)[:, None])
    value = put("Mul", value, factor, name=f"{name}/by_scale", dtype=ir.DataType.FLOAT)
    if dtype == ir.DataType.FLOAT or dtype is None:
        return value
    return put("Cast", value, name=f"{name}/CastBack", dtype=dtype, to=dtype)
