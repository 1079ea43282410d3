from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.graphs.quantize import check_activation_scale, quantize_activation, quantize_weight, weight_scales

FLOATS = st.floats(-1e4, 1e4, width=32)
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=FLOATS)


@given(MATRICES)
def test_weight_error_is_at_most_half_a_step(weight):
    scales = weight_scales(weight)
    codes = quantize_weight(weight, scales)
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    error = np.abs(codes.astype(np.float64) * scales - weight)
    assert (error <= scales * (0.5 + 1e-4)).all()


@given(MATRICES)
def test_largest_weight_of_a_channel_gets_the_last_code(weight):
    codes = quantize_weight(weight, weight_scales(weight))
    seen = np.abs(codes.astype(int)).max(axis=0)
    absmax = np.abs(weight).max(axis=0)
    assert (seen[absmax > 1e-30] == 127).all()
    assert (seen[absmax == 0] == 0).all()


def test_channel_of_zeros_or_underflow_gets_scale_one():
    weight = np.array([[0, 1e-44, 127], [0, -1e-44, 0]], np.float32)
    scales = weight_scales(weight)
    assert scales.tolist() == [1, 1, 1]
    assert quantize_weight(weight, scales).tolist() == [[0, 0, 127], [0, 0, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        weight_scales(np.array([[1.0, bad]], np.float32))


def test_halves_round_to_even_on_both_sides():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    assert quantize_activation(values, 1.0).tolist() == [0, 2, 2, 0, -2, -2]
    weight = np.array([[127.0], [0.5], [1.5], [-2.5]], np.float32)
    assert quantize_weight(weight, weight_scales(weight)).ravel().tolist() == [127, 0, 2, -2]


@cache
def quantize_linear_operator():
    import onnxruntime
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [None]), ("scale", []))]
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [0])
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])
    output = helper.make_tensor_value_info("codes", TensorProto.INT8, [None])
    graph = helper.make_graph([node], "g", inputs, [output], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@given(arrays.arrays(np.float32, 7, elements=st.floats(-1e6, 1e6, width=32)), st.floats(1e-3, 1e3))
def test_activation_codes_are_those_of_the_onnx_operator(values, scale):
    (expected,) = quantize_linear_operator().run(None, {"x": values, "scale": np.array(scale, np.float32)})
    assert (quantize_activation(values, scale) == expected).all()


def test_activation_saturates_at_minus_128():
    assert quantize_activation(np.array([-1e9, 1e9], np.float32), 0.1).tolist() == [-128, 127]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_unusable_scale_names_its_site(scale):
    with pytest.raises(PlanError, match=r"layers\.3\.mlp\.down_proj"):
        check_activation_scale(scale, "model.layers.3.mlp.down_proj")


def test_scale_that_is_subnormal_in_fp16_is_a_warning():
    assert "subnormal in FP16" in (check_activation_scale(5e-5, "x") or "")
    assert check_activation_scale(1e-4, "x") is None
