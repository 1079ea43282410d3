"""Linears of graphs that other exporters wrote, so that the lint can be asked about them."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.passes.linears import MODULE_KEY
from spikeexport.graphs.tensorrt.qdq import dequantized_input, is_constant
from spikeexport.graphs.tensorrt.roles import PRODUCTS


def name_linears_by_node(model: ir.Model) -> tuple[str, ...]:
    """Gives each product with a stored weight its own node's name as module path, in memory only.

    Args:
        model: A graph without module names.

    Returns:
        The names, in graph order.
    """
    names: list[str] = []
    for index, node in enumerate(model.graph):
        if node.op_type in PRODUCTS and _has_stored_weight(node):
            node.name = node.name or f"{node.op_type}_{index}"
            node.metadata_props[MODULE_KEY] = node.name
            names.append(node.name)
    return tuple(names)


def _has_stored_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    form = dequantized_input(weight)
    return is_constant(weight) or (form is not None and is_constant(form.dequantize.inputs[0]))
