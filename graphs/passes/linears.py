"""Finding the named linears of a graph."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.structure.roles import is_router

MODULE_KEY = "spikeexport.module"
"""Node metadata: the checkpoint's module path of the linear that a MatMul computes."""

_DECODER_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")


def named_matmuls(graph: ir.Graph) -> dict[str, ir.Node]:
    """Returns module path -> MatMul node of every named linear, in graph order (lm_head included)."""
    return {
        node.metadata_props[MODULE_KEY]: node
        for node in graph
        if node.op_type == "MatMul" and MODULE_KEY in node.metadata_props
    }


def planned_matmul(matmuls: Mapping[str, ir.Node], linear: str, does: str) -> ir.Node:
    """Returns the MatMul of a linear that a plan names; `does` is what the plan does with it ("quantises").

    Raises:
        GraphError: The graph has no such linear.
    """
    node = matmuls.get(linear)
    if node is None:
        raise GraphError(f"The plan {does} {linear}, which the graph does not have: make the plan again.")
    return node


def stored_weight(node: ir.Node, linear: str, otherwise: str) -> ir.Value:
    """Returns the initializer that holds a linear's weight [in, out].

    Raises:
        GraphError: The weight is computed in the graph; `otherwise` says what cannot be done with it then.
    """
    value = node.inputs[1]
    if value is None or node.inputs[0] is None or not value.is_initializer():
        raise GraphError(f"{linear}: the weight is computed in the graph, so that {otherwise}.")
    return value


def decoder_matmuls(graph: ir.Graph) -> dict[str, ir.Node]:
    """Returns module path -> MatMul node of the linears inside decoder layers, in graph order; routers are none."""
    return {
        module: node
        for module, node in named_matmuls(graph).items()
        if _DECODER_LAYER.search(module) and not is_router(module)
    }
