"""Which form each phase runs in: a decode form is kept only where ONNX Runtime really runs it on INT8 weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikeexport.backends.onnxruntime.truth import INTEGER_PRODUCTS, linear_operators, node_modules, optimized_graph
from spikeexport.graphs.onnxruntime.block_embedding import HEAD
from spikeexport.graphs.onnxruntime.forms import DECODE_FORM

if TYPE_CHECKING:
    import onnx_ir as ir
    from spikeexport.graphs.onnxruntime.forms import Forms


@dataclass(frozen=True)
class Phases:
    """What runs in the two phases.

    Attributes:
        words: `prefill` and `decode`: numbers of linears by what their product really is.
        kernels: `prefill` and `decode`: nodes that one step runs, the head included.
    """

    words: dict[str, str]
    kernels: dict[str, int]


def read_phases(forms: Forms, prefill: ir.Graph, decode: Path) -> Phases:
    """Says in which form prefill and decode run; a decode form whose weights ONNX Runtime widens is removed.

    Args:
        forms: What was written.
        prefill: The graph that ONNX Runtime runs for prompts.
        decode: The decode form's file.

    """
    head = len(forms.head.graph) if forms.head is not None else 0
    words = _counted(linear_operators(prefill, node_modules(forms.prefill.graph)))
    count = len(prefill) + head
    if forms.decode is None:
        skips = [skip for report in forms.reports if report.name == DECODE_FORM for skip in report.skips]
        return _one_form(words, skips[0].why if skips else "one graph for both phases", count)
    optimized = optimized_graph(decode, weight_only=True)
    operators = linear_operators(optimized, node_modules(forms.decode.graph))
    rewritten = {name for names in node_modules(forms.decode.graph).values() for name in names.split()} - {HEAD}
    widened = sorted(name for name in rewritten if operators.get(name) in _FLOATING_POINT)
    if widened and _is_w8(forms, widened[0]):
        decode.unlink()
        return _one_form(words, f"this ONNX Runtime widens the INT8 weight of {widened[0]} (1.32 does not)", count)
    kernels = {"prefill": count, "decode": len(optimized) + head}
    return Phases({"prefill": words, "decode": _counted(operators)}, kernels)


def _one_form(words: str, why: str, kernels: int) -> Phases:
    return Phases({"prefill": words, "decode": f"as prefill: {why}"}, {"prefill": kernels, "decode": kernels})


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
