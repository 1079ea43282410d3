import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.weights import LazyWeight, lazy_weight, set_weight


def weight(values, dtype=ir.DataType.FLOAT):
    array = np.array(values, np.float32)
    return LazyWeight("w", lambda: array, array.shape, dtype)


def test_nothing_is_read_before_it_is_asked_for():
    reads = []

    def read():
        reads.append(1)
        return np.ones((2, 3), np.float32)

    lazy = LazyWeight("w", read, (2, 3), ir.DataType.FLOAT16).changed(lambda w: w.T, name="w_t", shape=(3, 2))
    assert reads == []
    assert lazy.numpy().shape == (3, 2)
    assert lazy.nbytes == 12
    lazy.tobytes()
    assert len(reads) == 2, "kept in memory instead of read again"


def test_changes_happen_in_float32_before_the_cast():
    tiny = weight([1e-6], ir.DataType.FLOAT16).changed(lambda w: w * np.float32(1e6))
    assert tiny.numpy().dtype == np.float16
    assert tiny.numpy()[0] == 1.0


def test_bytes_are_those_of_a_contiguous_array():
    turned = weight([[1, 2], [3, 4]]).changed(lambda w: w.T)
    assert turned.tobytes() == np.array([[1, 3], [2, 4]], np.float32).tobytes()


def test_bfloat16_bytes_round_to_nearest():
    assert weight([1.00390625 + 0.002], ir.DataType.BFLOAT16).tobytes() == b"\x81\x3f"


def test_fp16_overflow_is_refused_with_the_weights_name():
    with pytest.raises(GraphError, match=r"w: values up to 1e\+05 do not fit FP16.*bf16"):
        weight([1e5], ir.DataType.FLOAT16).numpy()


def test_any_initializer_can_become_lazy():
    value = ir.Value(name="v", const_value=ir.tensor(np.array([1.5], np.float16), name="v"))
    assert lazy_weight(value).read_float32().tolist() == [1.5]
    with pytest.raises(GraphError, match="no value"):
        lazy_weight(ir.Value(name="empty"))


def test_a_taken_name_is_refused():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g")
    set_weight(graph, weight([1.0]))
    with pytest.raises(GraphError, match="already has an initializer named w"):
        set_weight(graph, weight([1.0]))
