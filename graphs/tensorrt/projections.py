"""How queries, keys and values get from the layer's input to the attention: one branch each."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from spikeexport.graphs.passes.linears import MODULE_KEY
from spikeexport.graphs.tensorrt.qdq import DequantizedInput, constant_value, dequantized_input, is_constant

BY_HEAD = (0, 2, 1, 3)
"""[B, S, heads, D] -> [B, heads, S, D]."""

_CACHE_STEPS = ("Cast", "Mul", "DequantizeLinear", "QuantizeLinear")
"""What an INT8 cache puts between the new heads, the past and the attention."""

_PER_HEAD = ("RotaryEmbedding", "RMSNormalization")


@dataclass(frozen=True)
class Projection:
    """Product -> [bias] -> [norm over a head] -> [rotary embedding] -> heads [B, heads, S, D].

    Attributes:
        product: The MatMul.
        weight: How its weight [K, heads * D] is quantised.
        bias: What is added to the product, [heads * D], or None.
        steps: The norm and the rotary embedding, in the order in which they are applied.
        gone: Every node from the product to the heads, the product first.
        heads: Number of heads.
        head_dim: D.
    """

    product: ir.Node
    weight: DequantizedInput
    bias: ir.Value | None
    steps: tuple[ir.Node, ...]
    gone: tuple[ir.Node, ...]
    heads: int
    head_dim: int

    @property
    def by_head(self) -> ir.Value:
        """The heads [B, heads, S, D]."""
        return self.gone[-1].outputs[0]


def projections_of(attention: ir.Node) -> tuple[Projection, ...] | str:
    """Returns the branches of queries, new keys and new values, or why they are not three of the known form."""
    branches: list[Projection] = []
    for word, value in zip(("queries", "keys", "values"), new_heads(attention), strict=True):
        found = _projection(value)
        if isinstance(found, str):
            return f"its {word}: {found}"
        branches.append(found)
    return tuple(branches)


def new_heads(attention: ir.Node) -> list[ir.Value | None]:
    """Returns the heads of the new tokens: keys and values are the last part of their Concat with the cache."""
    query, key, value = attention.inputs[:3]
    return [query, *(_last_part(item) for item in (key, value))]


def _last_part(value: ir.Value | None) -> ir.Value | None:
    """Returns what is joined last, looking through the scaling and Q/DQ of an INT8 cache; None where nothing is."""
    joined = _above(value, _CACHE_STEPS)
    while joined is not None and joined.op_type == "Concat":
        value = joined.inputs[-1]
        joined = _above(value, _CACHE_STEPS)
        if joined is None or joined.op_type != "Concat":
            return _below_quantizer(value)
    return None


def _below_quantizer(value: ir.Value | None) -> ir.Value | None:
    """Returns the heads that a cache's quantiser reads, or the value itself where there is none."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "QuantizeLinear":
        return value
    while node is not None and node.op_type in _CACHE_STEPS:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return value


def _above(value: ir.Value | None, passing: tuple[str, ...]) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in passing:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _projection(value: ir.Value | None) -> Projection | str:
    chain = _chain_to_product(value)
    if isinstance(chain, str):
        return chain
    product, between = chain[0], chain[1:]
    weight = dequantized_input(product.inputs[1])
    if weight is None or weight.axis is None or weight.axis_at_product != -1:
        return "the weight is not INT8 with a scale per output channel"
    if MODULE_KEY not in product.metadata_props:
        return "the product has no module name"
    heads = _head_count(between)
    columns = weight.dequantize.inputs[0].shape[1] if weight.dequantize.inputs[0] is not None else None  # type: ignore[index]
    if heads is None or not isinstance(columns, int) or columns % heads:
        return "the number of heads is not known ahead of time"
    steps = tuple(node for node in between if node.op_type in _PER_HEAD)
    if not all(_works_per_head(node) for node in steps):
        return "a norm runs over more than one head"
    bias = next((node.inputs[1] for node in between if node.op_type == "Add"), None)
    return Projection(product, weight, bias, steps, (product, *between), heads, columns // heads)


def _chain_to_product(value: ir.Value | None) -> list[ir.Node] | str:
    """Walks up to the product; returns it and the nodes below it in order."""
    chain: list[ir.Node] = []
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or tuple(node.attributes["perm"].as_ints()) != BY_HEAD:
        return "they are no transposed heads"
    while node is not None and len(chain) < 8:
        if len(node.outputs[0].uses()) != 1 and chain:
            return f"{node.name} has other readers"
        chain.append(node)
        if node.op_type == "MatMul":
            return chain[::-1]
        if node.op_type not in ("Transpose", "Reshape", "Add", *_PER_HEAD):
            return f"{node.name} ({node.op_type}) stands between the product and the heads"
        if node.op_type == "Add" and not is_constant(node.inputs[1]):
            return f"{node.name} adds something that is no bias"
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return "no product above them"


def _head_count(between: list[ir.Node]) -> int | None:
    """Reads the number of heads from the last Reshape, [0, 0, heads, -1]."""
    shapes = [constant_value(node.inputs[1]) for node in between if node.op_type == "Reshape"]
    last = shapes[-1] if shapes else None
    return int(last[2]) if last is not None and len(last) == 4 and last[2] > 0 else None


def _works_per_head(node: ir.Node) -> bool:
    if node.op_type != "RMSNormalization":
        return True
    above = node.inputs[0].producer() if node.inputs[0] is not None else None
    shape = constant_value(above.inputs[1]) if above is not None and above.op_type == "Reshape" else None
    return shape is not None and len(shape) == 4 and node.attributes["axis"].as_int() == -1
