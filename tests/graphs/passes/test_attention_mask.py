import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from spikeexport.graphs.passes.attention_mask import insert_attention_masks


def mask_session(prefix_length, window=None):
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", size]))
        for name, size in (("input_ids", "s"), ("attention_mask", "t"))
    ]
    copy = ir.node("Identity", [inputs[0]])
    graph = ir.Graph(inputs, [], nodes=[copy], opset_imports={"": 23}, name="g")
    graph.outputs.append(insert_attention_masks(graph, prefix_length, [window])[window])
    return onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


def expected_mask(padding, sequence, prefix_length, window=None):
    """The definition, key by key: padding [B, T] of 0 and 1, the last `sequence` of T are the queries."""
    batch, total = padding.shape
    mask = np.zeros((batch, 1, sequence, prefix_length + total), bool)
    for row in range(batch):
        tokens = [1] * prefix_length + list(padding[row])
        for query in range(sequence):
            position = prefix_length + total - sequence + query
            for key in range(position + 1):
                near = window is None or sum(tokens[key + 1 : position + 1]) < window
                mask[row, 0, query, key] = near and bool(tokens[key] or key == position)
    return mask


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("prefix_length", [0, 3])
@pytest.mark.parametrize(("sequence", "past"), [(6, 0), (1, 5), (4, 3), (1, 0)])
def test_mask_is_its_definition(prefix_length, sequence, past, window):
    padding = np.ones((3, past + sequence), np.int64)
    padding[1, :2] = 0
    padding[2, :] = 0
    ids = np.zeros((3, sequence), np.int64)
    session = mask_session(prefix_length, window)
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": padding})
    assert (found == expected_mask(padding, sequence, prefix_length, window)).all()


@pytest.mark.parametrize("prefix_length", [0, 2])
def test_no_row_is_empty(prefix_length):
    padding = np.zeros((2, 7), np.int64)
    ids = np.zeros((2, 7), np.int64)
    (found,) = mask_session(prefix_length).run(None, {"input_ids": ids, "attention_mask": padding})
    assert found.any(axis=-1).all()
