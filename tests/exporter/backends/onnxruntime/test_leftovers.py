"""What moves data beside the products, in bytes per token."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.backends.onnxruntime.leftovers import bytes_per_token, find_leftovers


def cast(shape, name="x"):
    source = ir.val(name, ir.DataType.FLOAT16, shape)
    node = ir.node("Cast", [source], {"to": 1})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), source.shape
    return node


def test_bytes_are_read_and_written_for_one_token():
    assert bytes_per_token(cast(["batch", "sequence", 64])) == 64 * (2 + 4)


def test_kinds_are_counted_and_one_unknown_size_makes_the_sum_unknown():
    known, other = cast(["batch", 64], "x"), cast(["batch", 32], "y")
    graph = ir.Graph(
        [known.inputs[0], other.inputs[0]], [known.outputs[0]], nodes=[known, other], opset_imports={"": 23}
    )
    assert find_leftovers(graph)["Cast"].model_dump() == {"count": 2, "bytes_moved": 96 * 6}
    other.outputs[0].shape = None
    assert find_leftovers(graph)["Cast"].model_dump() == {"count": 2, "bytes_moved": None}
