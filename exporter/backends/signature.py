"""The inputs and outputs of a graph as plain values, which manifests and servers' configurations carry."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.backends.manifest import Signature, TensorSpec

DTYPE_WORDS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.BOOL: "bool",
}
"""Element types that a decoder's inputs and outputs have -> our words for them."""


def graph_signature(graph: ir.Graph) -> Signature:
    """Returns the names, element types and shapes (-1 for dynamic axes) of a graph's inputs and outputs."""
    return Signature(
        inputs=tuple(_spec(value) for value in graph.inputs),
        outputs=tuple(_spec(value) for value in graph.outputs),
    )


def _spec(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None, "a graph's inputs and outputs are typed"
    assert value.shape is not None, "a decoder's inputs and outputs have a rank"
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=str(value.name), dtype=DTYPE_WORDS[value.dtype], shape=shape)
