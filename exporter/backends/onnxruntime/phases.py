"""Which form each phase runs in: the decode form is kept only where ONNX Runtime really makes it weight-only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from spikeexport.backends.onnxruntime.truth import INTEGER_PRODUCTS, linear_operators, node_modules, optimized_graph
from spikeexport.graphs.onnxruntime.block_embedding import HEAD
from spikeexport.graphs.onnxruntime.weight_only_decode import WeightOnlyDecode

if TYPE_CHECKING:
    import onnx_ir as ir
    from spikeexport.graphs.onnxruntime.forms import Forms


def phase_words(forms: Forms, prefill: ir.Graph, decode: Path) -> dict[str, str]:
    """Says in which form prefill and decode run; a decode form that is not weight-only is removed.

    Args:
        forms: What was written.
        prefill: The graph that ONNX Runtime runs for prompts.
        decode: The decode form's file.

    Returns:
        `prefill` and `decode`: numbers of linears by what their product really is.
    """
    words = _counted(linear_operators(prefill, node_modules(forms.prefill.graph)))
    if forms.decode is None:
        reasons = [
            skip.why for report in forms.reports for skip in report.skips if report.name == WeightOnlyDecode.name
        ]
        return {"prefill": words, "decode": f"as prefill: {reasons[0] if reasons else 'no linear is W8A8'}"}
    operators = linear_operators(optimized_graph(decode, weight_only=True), node_modules(forms.decode.graph))
    rewritten = {name for names in node_modules(forms.decode.graph).values() for name in names.split()} - {HEAD}
    widened = sorted(name for name in rewritten if operators.get(name) in _FLOATING_POINT)
    if widened and _is_w8(forms, widened[0]):
        decode.unlink()
        why = f"this ONNX Runtime widens the INT8 weight of {widened[0]} (1.32 and later do not)"
        return {"prefill": words, "decode": f"as prefill: {why}"}
    return {"prefill": words, "decode": _counted(operators)}


_FLOATING_POINT = frozenset({"MatMul", "FusedMatMul", "Gemm"})


def _is_w8(forms: Forms, module: str) -> bool:
    """Whether the prefill form multiplies that linear's INT8 weight."""
    modules = node_modules(forms.prefill.graph)
    return any(module in names.split() for node, names in modules.items() if node.endswith("MatMulIntegerToFloat"))


def _counted(operators: dict[str, str]) -> str:
    kinds = Counter(_kind(operator) for module, operator in operators.items() if module != HEAD)
    return ", ".join(f"{count} linears {kind}" for kind, count in kinds.most_common()) or "no linears"


def _kind(operator: str) -> str:
    if operator in INTEGER_PRODUCTS:
        return "W8A8"
    return "in floating point" if operator in _FLOATING_POINT else f"weight-only ({operator}, 8 bits)"
