"""Which nodes of a decoder graph are its linears and its attentions, by the module names that they carry."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir
from spikeexport.graphs.passes.linears import MODULE_KEY
from spikeexport.graphs.tensorrt.qdq import dequantized_input

PRODUCTS = ("MatMul", "Gemm")
_LAYER = re.compile(r"(?:^|[./_])(?:layers|h|blocks)[./](\d+)(?:[./]|$)")


@dataclass(frozen=True)
class Roles:
    """The nodes that an engine's truth is told about, by ONNX node name.

    Attributes:
        linears: Module path -> name of the node that computes it.
        attentions: Name of the attention -> names of its nodes: the operator itself, or the two products and the
            softmax of a decomposed one.
    """

    linears: dict[str, str]
    attentions: dict[str, tuple[str, ...]]


def find_roles(model: ir.Model) -> Roles:
    """Finds the linears (nodes with a module name) and the attentions of a decoder graph."""
    linears: dict[str, str] = {}
    attentions: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        for module in modules_of(node):
            linears[module] = node.name or ""
        parts = attention_parts(node)
        if parts:
            attentions[_attention_name(node)] = tuple(part.name or "" for part in parts)
    return Roles(linears, attentions)


def quantized_linears(model: ir.Model) -> tuple[str, ...]:
    """Returns the module paths of the linears whose input and weight both come from INT8 codes, as the graph says."""
    return tuple(
        module
        for node in model.graph
        if node.op_type in PRODUCTS and all(dequantized_input(value) is not None for value in node.inputs[:2])
        for module in modules_of(node)
    )


def modules_of(node: ir.Node) -> tuple[str, ...]:
    """Returns the module paths of the linears that a matrix product computes; empty for every other node."""
    if node.op_type not in PRODUCTS:
        return ()
    return tuple(name for name in node.metadata_props.get(MODULE_KEY, "").split(",") if name)


def attention_parts(node: ir.Node) -> tuple[ir.Node, ...]:
    """Returns the nodes of the attention that `node` stands for: an Attention operator, or a softmax between products.

    A router's softmax feeds no matrix product and is no attention.
    """
    if node.op_type == "Attention":
        return (node,)
    if node.op_type != "Softmax":
        return ()
    scores = _product_above(node.inputs[0])
    mixes = [reader for reader in _readers(node.outputs[0]) if reader.op_type == "MatMul"]
    return (scores, node, mixes[0]) if scores is not None and mixes else ()


def layer_index(name: str) -> int | None:
    """Returns the decoder layer that a node or module name belongs to, or None."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def _product_above(value: ir.Value | None) -> ir.Node | None:
    """Walks up from the softmax through scaling, masking and casts to the product of queries and keys."""
    for _ in range(8):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "MatMul":
            return node
        if node.op_type not in ("Add", "Mul", "Div", "Cast", "Where", "Sub", "Reshape", "Tanh"):
            return None
        value = node.inputs[1] if node.op_type == "Where" else node.inputs[0]
    return None


def _readers(value: ir.Value) -> list[ir.Node]:
    """Returns the nodes that read a value, looking through casts and reshapes."""
    readers: list[ir.Node] = []
    for use in value.uses():
        readers.extend(_readers(use.node.outputs[0]) if use.node.op_type in ("Cast", "Reshape") else [use.node])
    return readers


def _attention_name(node: ir.Node) -> str:
    name = node.name or ""
    return name.rpartition("/")[0] or name
