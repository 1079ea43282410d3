"""Every row of the lint's table, on a real graph with a planted fault; nothing on the graph as it was exported."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.graphs.passes.linears import decoder_matmuls
from spikeexport.graphs.tensorrt.lint import RULES, lint, reasons_by_module

from tests.constant_plan import portable_graph
from tests.graphs.tensorrt import faults

DOWN = "model.layers.1.mlp.down_proj"
QUERY, KEY, VALUE = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")


@pytest.fixture
def model(tiny_llama_folder) -> ir.Model:
    return portable_graph(tiny_llama_folder)


def _rules(findings) -> set[str]:
    return {finding.rule for finding in findings}


def test_exported_graph_has_no_findings(model):
    assert lint(model) == ()


def test_excluded_linear_is_no_finding(tiny_llama_folder):
    excluded = portable_graph(tiny_llama_folder, excluded=(DOWN,))
    planned = [name for name in decoder_matmuls(excluded.graph) if name != DOWN]
    assert lint(excluded, planned) == ()


@pytest.mark.parametrize(
    ("fault", "rule", "words"),
    [
        (faults.weight_along_inputs, "weight-along-inputs", "along the input channels"),
        (faults.activation_per_channel, "activation-per-channel", "per channel"),
        (faults.float_activation, "float-activation", "weight-only"),
        (faults.float_weight, "float-weight", "weight is not quantised"),
        (faults.computed_scale, "computed-scale", "at run time"),
    ],
)
def test_linear_outside_int8_is_named_with_its_cure(model, fault, rule, words):
    planned = list(decoder_matmuls(model.graph))
    fault(model, DOWN)
    found = [finding for finding in lint(model, planned) if finding.effect == "fallback"]
    assert {finding.rule for finding in found} == {rule}
    assert {finding.modules for finding in found} == {(DOWN,)}
    assert words in found[0].why
    reasons = reasons_by_module(found)
    assert set(reasons) == {DOWN}
    assert found[0].cure in reasons[DOWN]


def test_fault_at_a_shared_input_names_all_its_linears(model):
    faults.zero_point(model, QUERY, np.array(3, np.int8))
    found = lint(model)
    assert _rules(found) == {"nonzero-zero-point"}
    assert {finding.modules for finding in found} == {(QUERY, KEY, VALUE)}
    assert {finding.node for finding in found} == {
        f"{QUERY}/input/QuantizeLinear",
        f"{QUERY}/input/DequantizeLinear",
    }


@pytest.mark.parametrize(
    ("scale", "rule"),
    [
        (np.array(0.0, np.float32), "invalid-scale"),
        (np.array(-1.0, np.float32), "invalid-scale"),
        (np.array(np.nan, np.float32), "invalid-scale"),
        (np.array(np.inf, np.float32), "invalid-scale"),
        (np.array(3e-5, np.float16), "subnormal-scale"),
        (np.array(0.05, np.float16), "half-scale"),
    ],
)
def test_scale_is_judged(model, scale, rule):
    faults.input_scale(model, DOWN, scale)
    assert rule in _rules(lint(model))


def test_large_half_scale_is_not_called_subnormal(model):
    faults.input_scale(model, DOWN, np.array(0.05, np.float16))
    assert "subnormal-scale" not in _rules(lint(model))


def test_scales_of_unlike_types(model):
    faults.unlike_scales(model, DOWN)
    found = [finding for finding in lint(model) if finding.effect == "refused"]
    assert [(finding.rule, finding.modules) for finding in found] == [("unlike-scales", (DOWN,))]


def test_missing_zero_point(model):
    faults.no_zero_point(model, DOWN)
    found = lint(model)
    assert _rules(found) == {"missing-zero-point"}
    assert found[0].effect == "warning"


def test_unsigned_codes(model):
    faults.zero_point(model, DOWN, np.array(0, np.uint8))
    assert "unsigned-codes" in _rules(lint(model))


def test_attention_that_holds_the_cache(model):
    name = faults.attention_with_cache(model)
    found = lint(model)
    assert [(finding.rule, finding.node, finding.effect) for finding in found] == [
        ("cache-inside-attention", name, "refused")
    ]


def test_quantizer_that_buys_nothing(model):
    faults.idle_quantizer(model, DOWN)
    assert [(finding.rule, finding.node) for finding in lint(model)] == [("idle-quantizer", "idle/DequantizeLinear")]


def test_full_precision_attention_does_not_fuse(tiny_llama_folder):
    found = lint(portable_graph(tiny_llama_folder, dtype="fp32"))
    assert _rules(found) == {"full-precision-attention"}
    assert len(found) == 3


def test_old_opset_with_half_precision_quantizers(model):
    faults.input_scale(model, DOWN, np.array(0.05, np.float16))
    quantizer = next(node for node in model.graph if node.name == f"{DOWN}/input/QuantizeLinear")
    quantizer.replace_input_with(0, quantizer.inputs[0].producer().inputs[0])
    model.opset_imports[""] = 18
    assert "half-at-old-opset" in _rules(lint(model))
    model.opset_imports[""] = 23
    assert "half-at-old-opset" not in _rules(lint(model))


def test_unknown_opset_is_said(model):
    model.opset_imports[""] = 26
    assert _rules(lint(model)) == {"opset"}


def _small_model(nodes: list[ir.Node], inputs: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(inputs, [nodes[-1].outputs[0]], nodes=nodes, opset_imports={"": 23}, name="small")
    return ir.Model(graph, ir_version=10)


def _value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _decomposed_attention(shape: tuple[int | str, ...], quantised: bool) -> ir.Model:
    query, key, value = (_value(name, ir.DataType.FLOAT16, *shape) for name in ("q", "k", "v"))
    nodes: list[ir.Node] = []
    operand = key
    if quantised:
        scale = _value("scale", ir.DataType.FLOAT)
        scale.const_value = ir.tensor(np.array(0.1, np.float32), name="scale")
        zero = _value("zero", ir.DataType.INT8)
        zero.const_value = ir.tensor(np.array(0, np.int8), name="zero")
        wide = ir.node("Cast", [key], {"to": ir.DataType.FLOAT}, name="wide")
        quantize = ir.node("QuantizeLinear", [wide.outputs[0], scale, zero], name="quantize")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name="dequantize")
        narrow = ir.node("Cast", [dequantize.outputs[0]], {"to": ir.DataType.FLOAT16}, name="narrow")
        nodes += [wide, quantize, dequantize, narrow]
        operand = narrow.outputs[0]
    scores = ir.node("MatMul", [query, operand], name="attn/scores")
    softmax = ir.node("Softmax", [scores.outputs[0]], {"axis": -1}, name="attn/Softmax")
    nodes += [scores, softmax, ir.node("MatMul", [softmax.outputs[0], value], name="attn/mix")]
    return _small_model(nodes, [query, key, value])


def test_quantised_operands_of_a_decomposed_attention():
    assert lint(_decomposed_attention(("b", 4, "s", 16), quantised=False)) == ()
    found = lint(_decomposed_attention(("b", 4, "s", 16), quantised=True))
    assert [(finding.rule, finding.effect) for finding in found] == [("quantized-attention", "unfused")]


def test_grouped_heads_in_five_axes():
    found = lint(_decomposed_attention(("b", 2, 2, "s", 16), quantised=False))
    assert _rules(found) == {"grouped-in-five-axes"}


def test_norm_that_squares_in_half_precision():
    x = _value("x", ir.DataType.FLOAT16, "b", "s", 64)
    square = ir.node("Mul", [x, x], name="norm/square")
    mean = ir.node("ReduceMean", [square.outputs[0]], name="norm/mean")
    assert _rules(lint(_small_model([square, mean], [x]))) == {"half-precision-square"}
    x = _value("x", ir.DataType.FLOAT16, "b", "s", 64)
    wide = ir.node("Cast", [x], {"to": ir.DataType.FLOAT}, name="norm/wide")
    square = ir.node("Mul", [wide.outputs[0], wide.outputs[0]], name="norm/square")
    mean = ir.node("ReduceMean", [square.outputs[0]], name="norm/mean")
    assert lint(_small_model([wide, square, mean], [x])) == ()


@pytest.mark.parametrize("operator", ["DynamicQuantizeLinear", "NonZero"])
def test_unsupported_operators(operator):
    x = _value("x", ir.DataType.FLOAT, "b", 64)
    found = lint(_small_model([ir.node(operator, [x], name="bad")], [x]))
    assert [(finding.rule, finding.effect, finding.node) for finding in found] == [
        ("unsupported-operator", "refused", "bad")
    ]


def test_operator_of_another_domain():
    x = _value("x", ir.DataType.FLOAT, "b", 64)
    node = ir.node("GroupQueryAttention", [x], domain="com.microsoft", name="gqa")
    assert _rules(lint(_small_model([node], [x]))) == {"unsupported-operator"}


def test_split_of_a_joined_linear_on_its_last_axis(model):
    node = decoder_matmuls(model.graph)[QUERY]
    split = ir.node("Split", [node.outputs[0]], {"axis": -1}, num_outputs=2, name="qkv/Split")
    model.graph.insert_after(node, split)
    found = lint(model)
    assert [(finding.rule, finding.modules) for finding in found] == [("last-axis-split", (QUERY,))]


def test_rules_have_names_of_their_own_and_a_cure():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.cure for rule in RULES)
