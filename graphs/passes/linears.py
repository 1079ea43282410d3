"""Finding the named linears of a graph."""

from __future__ import annotations

import re

import onnx_ir as ir
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


def decoder_matmuls(graph: ir.Graph) -> dict[str, ir.Node]:
    """Returns module path -> MatMul node of the linears inside decoder layers, in graph order; routers are none."""
    return {
        module: node
        for module, node in named_matmuls(graph).items()
        if _DECODER_LAYER.search(module) and not is_router(module)
    }
