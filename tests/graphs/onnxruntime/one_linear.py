"""A graph of one quantised linear in the portable form, and running it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MODULE = "model.layers.0.mlp.down_proj"


def one_linear(
    codes: np.ndarray,
    weight_scale: np.ndarray,
    *,
    input_scale: float | None = 0.02,
    bias: np.ndarray | None = None,
    axis: int = 1,
) -> ir.Model:
    """Builds y = DQ(Q(x)) @ DQ(W) + bias; without `input_scale` the input stays as it is.

    Args:
        codes: int8 [K, N].
        weight_scale: float32 [N].
        input_scale: Scale of the input, or None.
        bias: float32 [N] or None.
        axis: The weight's quantisation axis.
    """
    inputs, outputs = codes.shape
    x = ir.val("x", ir.DataType.FLOAT, ["batch", "sequence", inputs])
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        constants.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return constants[-1]

    def node(op_type: str, *values: ir.Value, name: str, dtype=ir.DataType.FLOAT, **attributes) -> ir.Value:
        made = ir.node(op_type, values, attributes or None, name=name)
        made.outputs[0].name, made.outputs[0].dtype = f"{name}/output", dtype
        nodes.append(made)
        return made.outputs[0]

    source = x
    if input_scale is not None:
        scale, zero = constant("s", np.float32(input_scale)[...]), constant("z", np.int8(0)[...])
        quantised = node("QuantizeLinear", x, scale, zero, name="input/QuantizeLinear", dtype=ir.DataType.INT8)
        source = node("DequantizeLinear", quantised, scale, zero, name="input/DequantizeLinear")
    parts = (constant(f"{MODULE}.weight_q", codes), constant(f"{MODULE}.weight_scale", weight_scale))
    weight = node("DequantizeLinear", *parts, name="weight/DequantizeLinear", axis=axis)
    result = node("MatMul", source, weight, name=f"{MODULE}/MatMul")
    nodes[-1].metadata_props["spikeexport.module"] = MODULE
    if bias is not None:
        result = node("Add", result, constant("bias", bias), name="bias/Add")
    result.shape = ir.Shape(["batch", "sequence", outputs])
    graph = ir.Graph([x], [result], nodes=nodes, initializers=constants, opset_imports={"": 23}, name="linear")
    return ir.Model(graph, ir_version=11)


def run(model: ir.Model, x: np.ndarray, *, basic: bool = False) -> np.ndarray:
    """Runs a model of one input and one output."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if basic:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def random_linear(inputs: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random codes int8 [K, N] with the extremes present, and scales float32 [N]."""
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    codes[0, 0], codes[-1, -1] = 127, -127
    return codes, random.uniform(1e-4, 1e-2, outputs).astype(np.float32)
