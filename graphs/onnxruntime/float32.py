"""FP16 and BF16 graphs to FP32: ONNX Runtime's CPU kernels compute in FP32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.edits import take_over
from spikeexport.graphs.onnxruntime.lowering_pass import LoweringPass

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class CastToFloat32(LoweringPass):
    """Makes every FP16 and BF16 value FP32: inputs, outputs, initializers, attributes; casts between them vanish.

    The stored values stay the rounded ones, so the result is the portable graph computed in FP32.
    """

    name = "float32"

    def rewrite(self, graph: ir.Graph) -> None:
        """Converts all values, then drops the casts that became no-ops."""
        for value in graph.initializers.values():
            self._widen_initializer(value)
        for value in graph.inputs:
            self._widen_type(value)
        for node in graph.all_nodes():
            for output in node.outputs:
                self._widen_type(output)
            self._widen_attributes(node)
        self._drop_casts(graph)

    def _widen_initializer(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is not None and tensor.dtype in HALF:
            value.const_value = widened(tensor)
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self.applied += 1

    def _widen_type(self, value: ir.Value) -> None:
        if value.dtype in HALF:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self.applied += 1

    def _widen_attributes(self, node: ir.Node) -> None:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
                node.attributes[name] = ir.AttrTensor(name, widened(attribute.value))
                self.applied += 1
            elif name in ("to", "dtype", "output_dtype") and attribute.value in HALF:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
                self.applied += 1

    def _drop_casts(self, graph: ir.Graph) -> None:
        """Removes Cast(FP32 -> FP32); a cast whose input type nobody declared is left to ONNX Runtime."""
        for node in list(graph):
            if node.op_type != "Cast" or node.attributes["to"].as_int() != ir.DataType.FLOAT:
                continue
            source, target = node.inputs[0], node.outputs[0]
            if source is not None and source.dtype == ir.DataType.FLOAT and not target.is_graph_output():
                take_over(target, source)
                self.applied += 1


def widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Returns `tensor` as FP32, converted only when it is read."""

    def convert() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(convert, dtype=ir.DataType.FLOAT, shape=shape, name=tensor.name)
