"""What ONNX Runtime really runs, read from the graph that its optimiser writes out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir
from spikeexport.backends.manifest import EngineTruth, Fallback
from spikeexport.backends.onnxruntime.leftovers import find_leftovers
from spikeexport.graphs.onnxruntime.weights import MODULE_KEY
from spikeexport.runners.ort_session import SessionSettings, open_session

INTEGER_PRODUCTS = frozenset(
    {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger"}
)
"""Operators whose multiply-adds run on integers with a statically or dynamically quantised input."""

ATTENTION_KERNELS = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention", "PackedAttention"})
"""Operators that compute one layer's attention in one kernel."""


def optimized_graph(model: Path, *, weight_only: bool = False) -> ir.Graph:
    """Returns the graph that ONNX Runtime runs for `model` on this CPU, weights left out; see `open_session`."""
    # Beside the model, where there is room for its weights a second time.
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        target = Path(folder) / "optimized.onnx"
        settings = SessionSettings(prepacking=False)
        session = open_session(model, settings, "all", optimized_to=target, weight_only=weight_only)
        del session
        return ir.load(target).graph


def read_truth(graph: ir.Graph, planned: Iterable[str], modules: Mapping[str, str], layers: int) -> EngineTruth:
    """Counts what runs in which form.

    Args:
        graph: What `optimized_graph` returned.
        planned: Module paths of the linears that the plan quantises.
        modules: Node name in the lowered graph -> module paths computed there, joined by spaces.
        layers: Number of decoder layers that have attention.
    """
    planned = tuple(planned)
    merged: dict[str, tuple[str, ...]] = {}
    other: dict[str, str] = {}
    wanted = set(planned)
    for node in graph:
        for module in _modules_of(node, modules):
            if module in wanted and node.op_type in INTEGER_PRODUCTS:
                merged[str(node.name)] = (*merged.get(str(node.name), ()), module)
            else:
                other[module] = node.op_type
    integer = {module for group in merged.values() for module in group}
    counts = Counter(node.op_type for node in graph)
    return EngineTruth(
        planned=planned,
        fallbacks=tuple(Fallback(name=name, why=_why(other.get(name))) for name in planned if name not in integer),
        merged=merged,
        attention_fused=min(sum(counts[kind] for kind in ATTENTION_KERNELS), layers),
        attention_layers=layers,
        leftovers=find_leftovers(graph),
        kernels={"prefill": len(graph), "decode": len(graph)},
    )


def linear_operators(graph: ir.Graph, modules: Mapping[str, str]) -> dict[str, str]:
    """Returns module path -> the operator that computes that linear; arguments as for `read_truth`."""
    return {module: node.op_type for node in graph for module in _modules_of(node, modules)}


def node_modules(graph: ir.Graph) -> dict[str, str]:
    """Returns node name -> module paths for the linears of a lowered graph."""
    return {str(node.name): node.metadata_props[MODULE_KEY] for node in graph if node.metadata_props.get(MODULE_KEY)}


def _modules_of(node: ir.Node, modules: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the linears computed in a node: by its name, else by the weight it reads (fusions are renamed)."""
    if str(node.name) in modules:
        return tuple(modules[str(node.name)].split())
    if not ("MatMul" in node.op_type or node.op_type in INTEGER_PRODUCTS):
        return ()
    names = [str(value.name) for value in node.inputs if value is not None]
    return tuple(part.partition(".weight_q")[0] for name in names for part in name.split("+") if ".weight_q" in part)


def _why(operator: str | None) -> str:
    if operator is None:
        return "ONNX Runtime's optimised graph has no node for it"
    if operator == "MatMulNBits":
        return "runs as MatMulNBits: 8-bit weights, unquantised input"
    return f"runs as {operator} in FP32: the Q/DQ around it did not become an integer product"
