"""Integer and weight-only linears against an independent numpy computation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.graphs.onnxruntime.integer_linear import IntegerLinears
from spikeexport.graphs.onnxruntime.weight_only_linear import ACCURACY_FP32, WeightOnlyLinears, blocked_codes

from tests.graphs.onnxruntime.one_linear import one_linear, random_linear, run

SCALE = 0.02


def activations(width: int, seed: int = 1) -> np.ndarray:
    """Values inside the range, far outside it on both sides, and on the edge between two codes."""
    x = np.random.default_rng(seed).normal(size=(2, 5, width)).astype(np.float32)
    x[0, 0, :6] = [1e4, -1e4, 127 * SCALE, -128 * SCALE, 0.5 * SCALE, 1.5 * SCALE]
    return x


def int8_codes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x / np.float32(SCALE)), -128, 127).astype(np.int64)


def exact_product(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (int8_codes(x) @ codes.astype(np.int64)) * (np.float64(np.float32(SCALE)) * scale.astype(np.float64))


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (70, 33), (576, 192)])
def test_integer_linear_is_the_exact_integer_product(inputs, outputs):
    codes, scale = random_linear(inputs, outputs)
    x = activations(inputs)
    model = one_linear(codes, scale)
    before = run(model, x, basic=True)
    step = IntegerLinears()
    step(model)
    assert step.applied == 1
    assert [node.op_type for node in model.graph] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    expected = exact_product(x, codes, scale)
    # One FP32 rounding of the scaled integer: 2^-24 of the value, doubled for the product of the scales.
    np.testing.assert_allclose(run(model, x), expected, rtol=3e-7, atol=0)
    np.testing.assert_allclose(before, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


def test_activation_codes_are_the_same_integers_shifted_by_128():
    codes, scale = random_linear(64, 8)
    x = activations(64)
    portable, lowered = one_linear(codes, scale), one_linear(codes, scale)
    IntegerLinears()(lowered)
    found = []
    for model in (portable, lowered):
        quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
        model.graph.outputs[:] = [quantize.outputs[0]]
        quantize.outputs[0].shape = ir.Shape(["batch", "sequence", 64])
        found.append(run(model, x, basic=True))
    assert (found[0].dtype, found[1].dtype) == (np.int8, np.uint8)
    np.testing.assert_array_equal(found[0].astype(np.int64), int8_codes(x))
    np.testing.assert_array_equal(found[1].astype(np.int64), found[0].astype(np.int64) + 128)


def test_bias_is_part_of_the_product():
    codes, scale = random_linear(64, 48)
    bias = np.linspace(-3, 3, 48, dtype=np.float32)
    model = one_linear(codes, scale, bias=bias)
    IntegerLinears()(model)
    assert len(model.graph) == 2
    x = activations(64)
    expected = exact_product(x, codes, scale) + bias
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fault", ["zero point", "weight scale", "code"])
def test_a_wrong_integer_linear_is_noticed(fault):
    codes, scale = random_linear(64, 48)
    model = one_linear(codes, scale)
    IntegerLinears()(model)
    product = model.graph[1]
    wrong = {
        "zero point": (4, np.uint8(127)[...]),
        "weight scale": (3, scale[::-1].copy()),
        "code": (1, np.where(codes == 127, 126, codes).astype(np.int8)),
    }[fault]
    product.inputs[wrong[0]].const_value = ir.tensor(wrong[1])
    x = activations(64)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(run(model, x), exact_product(x, codes, scale), rtol=3e-7, atol=0)


def test_a_weight_quantised_along_its_inputs_is_left_alone_with_a_reason():
    codes, scale = random_linear(48, 48)
    model = one_linear(codes, scale, axis=0)
    step = IntegerLinears()
    step(model)
    assert step.applied == 0
    assert "one scale per output channel" in step.skips[0].why


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (100, 33), (576, 192)])
def test_weight_only_linear_keeps_the_dequantised_weights(inputs, outputs):
    codes, scale = random_linear(inputs, outputs)
    model = one_linear(codes, scale, input_scale=None, bias=np.ones(outputs, np.float32))
    step = WeightOnlyLinears(accuracy=ACCURACY_FP32)
    step(model)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    x = np.random.default_rng(3).normal(size=(2, 5, inputs)).astype(np.float32)
    expected = x.astype(np.float64) @ (codes * scale.astype(np.float64)) + 1
    np.testing.assert_allclose(run(model, x), expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


def test_fast_weight_only_linear_rounds_its_input_to_8_bits_per_block():
    codes, scale = random_linear(576, 64)
    model = one_linear(codes, scale, input_scale=None)
    WeightOnlyLinears()(model)
    x = np.random.default_rng(3).normal(size=(1, 40, 576)).astype(np.float32)
    expected = x.astype(np.float64) @ (codes * scale.astype(np.float64))
    error = run(model, x) - expected
    # absmax / 254 rounding noise on inputs of variance 1: about 0.4 % of the output's spread.
    assert error.std() < 0.01 * expected.std()


def test_blocked_codes_shift_and_pad_with_zero():
    codes = np.array([[-127, 0], [127, 5], [1, -1]], np.int8)
    blocked = blocked_codes(codes, 16)
    assert blocked.shape == (2, 1, 16)
    np.testing.assert_array_equal(blocked[0, 0, :4], [1, 255, 129, 128])
    np.testing.assert_array_equal(blocked[1, 0, :4], [128, 133, 127, 128])


@pytest.mark.parametrize("input_scale", [SCALE, None])
def test_lowering_a_linear_twice_changes_nothing(input_scale):
    codes, scale = random_linear(64, 48)
    model = one_linear(codes, scale, input_scale=input_scale)
    for step in (IntegerLinears(), WeightOnlyLinears()):
        step(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    for step in (IntegerLinears(), WeightOnlyLinears()):
        step(model)
        assert step.applied == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
