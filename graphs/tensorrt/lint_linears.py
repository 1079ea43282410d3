"""Rules about linears: what keeps a matrix product with Q/DQ above it from becoming an INT8 one."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.tensorrt.findings import Rule, Surroundings
from spikeexport.graphs.tensorrt.qdq import PASS_THROUGH, DequantizedInput, dequantized_input, dtype_of
from spikeexport.graphs.tensorrt.roles import PRODUCTS, modules_of


def _is_planned(node: ir.Node, around: Surroundings) -> bool:
    return any(module in around.planned for module in modules_of(node))


def _activation(node: ir.Node) -> DequantizedInput | None:
    return dequantized_input(node.inputs[0])


def _weight(node: ir.Node) -> DequantizedInput | None:
    return dequantized_input(node.inputs[1])


def _float_activation(node: ir.Node, around: Surroundings) -> str | None:
    if not _is_planned(node, around) or _activation(node) is not None:
        return None
    return "the input is not quantised: a weight-only product runs in floating point"


def _float_weight(node: ir.Node, around: Surroundings) -> str | None:
    if not _is_planned(node, around) or _weight(node) is not None or _gathers_weight(node, around):
        return None
    return "the weight is not quantised: the input is dequantised before a floating-point product"


def _gathers_weight(node: ir.Node, around: Surroundings) -> str | None:
    above = node.inputs[1].producer() if node.inputs[1] is not None else None
    if not _is_planned(node, around) or above is None or above.op_type != "Gather":
        return None
    return "a Gather stands between the weight's DequantizeLinear and the product"


def _activation_per_channel(node: ir.Node, around: Surroundings) -> str | None:
    form = _activation(node)
    if not _is_planned(node, around) or form is None or form.axis is None:
        return None
    return "the input's scale is per channel"


def _weight_along_inputs(node: ir.Node, around: Surroundings) -> str | None:
    form = _weight(node)
    if not _is_planned(node, around) or form is None or form.axis is None:
        return None
    outputs = -2 if _is_transposed(node) else -1
    if form.axis_at_product == outputs:
        return None
    found = "behind a reshape" if form.axis_at_product is None else "along the input channels"
    return f"the weight's scale runs {found}, axis {form.axis}"


def _unlike_scales(node: ir.Node, _: Surroundings) -> str | None:
    activation, weight = _activation(node), _weight(node)
    if activation is None or weight is None:
        return None
    types = [dtype_of(form.dequantize.inputs[1]) for form in (activation, weight)]
    if None in types or types[0] == types[1]:
        return None
    return f"the input's scale is {types[0]} and the weight's {types[1]}"


def _is_transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transB")
    return node.op_type == "Gemm" and attribute is not None and bool(attribute.as_int())


def _splits_last_axis(node: ir.Node, around: Surroundings) -> str | None:
    attribute = node.attributes.get("axis")
    if attribute is None or attribute.as_int() not in (-1, 2):
        return None
    above = node.inputs[0].producer() if node.inputs[0] is not None else None
    while above is not None and above.op_type in ("Cast", "Identity", "Add"):
        above = above.inputs[0].producer() if above.inputs[0] is not None else None
    if above is None or not _is_planned(above, around):
        return None
    return "a joined linear's output is split on its last axis"


def _serves_no_product(node: ir.Node, _: Surroundings) -> str | None:
    if _reaches_product(node.outputs[0], 8):
        return None
    return "no matrix product reads the dequantised values: the pair only rounds"


def _reaches_product(value: ir.Value, depth: int) -> bool:
    if depth == 0 or value.is_graph_output():
        return True
    passing = (*PASS_THROUGH, "Concat", "Gather", "Expand", "Mul", "Attention")
    return any(
        use.node.op_type in PRODUCTS
        or use.node.op_type == "Attention"
        or (use.node.op_type in passing and _reaches_product(use.node.outputs[0], depth - 1))
        for use in value.uses()
    )


RULES = (
    Rule(
        "float-activation",
        "fallback",
        PRODUCTS,
        _float_activation,
        "quantise the input per tensor with a static scale, or exclude the linear",
    ),
    Rule("float-weight", "fallback", PRODUCTS, _float_weight, "store the weight as int8 behind a DequantizeLinear"),
    Rule("gathered-weight", "fallback", PRODUCTS, _gathers_weight, "gather the codes before DequantizeLinear"),
    Rule(
        "activation-per-channel",
        "fallback",
        PRODUCTS,
        _activation_per_channel,
        "use one scale per tensor; fold the per-channel part into the weight (smoothing)",
    ),
    Rule(
        "weight-along-inputs",
        "fallback",
        PRODUCTS,
        _weight_along_inputs,
        "give the weight one scale per output channel: axis 1 of a [K, N] weight",
    ),
    Rule("unlike-scales", "refused", PRODUCTS, _unlike_scales, "give both scales one type, FP32"),
    Rule(
        "last-axis-split",
        "fallback",
        ("Split",),
        _splits_last_axis,
        "reshape to [B, S, heads, D], transpose, and split on the head axis",
    ),
    Rule("idle-quantizer", "warning", ("DequantizeLinear",), _serves_no_product, "remove the pair"),
)
