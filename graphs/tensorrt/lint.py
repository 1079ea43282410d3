"""A static lint: patterns in an .onnx that TensorRT refuses, computes outside INT8 or splits, before anything is built.

The patterns were measured in TensorRT-RTX 1.7 builds: each rule is one row of the table, with the effect seen there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from spikeexport.graphs.tensorrt import lint_linears, lint_quantizers, lint_structure
from spikeexport.graphs.tensorrt.findings import Finding, Rule, Surroundings
from spikeexport.graphs.tensorrt.lint_structure import NEWEST_OPSET, OLDEST_OPSET
from spikeexport.graphs.tensorrt.qdq import PASS_THROUGH, dequantized_input
from spikeexport.graphs.tensorrt.roles import PRODUCTS, modules_of

RULES: tuple[Rule, ...] = (*lint_quantizers.RULES, *lint_linears.RULES, *lint_structure.RULES)
"""The pattern table."""


def lint(model: ir.Model, planned: Iterable[str] | None = None) -> tuple[Finding, ...]:
    """Returns what TensorRT would make of a graph that is not as planned, in the graph's order.

    Args:
        model: A decoder graph with Q/DQ.
        planned: Module paths of the linears that should become INT8; None = every linear with a quantised operand.
    """
    opset = model.opset_imports.get("", 0)
    modules = frozenset(planned) if planned is not None else frozenset(_quantized_modules(model))
    around = Surroundings(opset, modules)
    return (*_opset_finding(opset), *(found for node in model.graph for found in _check(node, around)))


def reasons_by_module(findings: Iterable[Finding]) -> dict[str, str]:
    """Returns module path -> why it is not INT8 and the cure, from the findings that cost a linear its INT8 product."""
    reasons: dict[str, str] = {}
    for finding in findings:
        if finding.effect in ("fallback", "refused"):
            for module in finding.modules:
                reasons.setdefault(module, f"{finding.why} ({finding.cure})")
    return reasons


def reasons_by_node(findings: Iterable[Finding]) -> dict[str, str]:
    """Returns ONNX node -> why its attention is not one kernel and the cure."""
    return {
        finding.node: f"{finding.why} ({finding.cure})"
        for finding in findings
        if finding.effect in ("unfused", "refused")
    }


def in_words(findings: Iterable[Finding]) -> list[str]:
    """Returns one line per kind of finding: the effect, the first node and how many more, what was found, the cure."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.why), []).append(finding)
    return [
        f"{group[0].effect}: {group[0].node}{f' and {len(group) - 1} more' if len(group) > 1 else ''}: "
        f"{group[0].why}; {group[0].cure}"
        for group in groups.values()
    ]


def _check(node: ir.Node, around: Surroundings) -> Iterator[Finding]:
    for rule in RULES:
        if rule.operators and node.op_type not in rule.operators:
            continue
        why = rule.check(node, around)
        if why is not None:
            modules = _modules_below(node)
            yield Finding(rule.name, rule.effect, node.name or node.op_type, modules, why, rule.cure)


def _modules_below(node: ir.Node, depth: int = 8) -> tuple[str, ...]:
    """Returns the linears that read a node's values without anything but moves, casts and Q/DQ in between."""
    if node.op_type in PRODUCTS:
        return modules_of(node)
    if node.op_type == "Split":
        above = node.inputs[0].producer() if node.inputs[0] is not None else None
        return modules_of(above) if above is not None else ()
    if depth == 0 or node.op_type not in (*PASS_THROUGH, "QuantizeLinear", "DequantizeLinear", "Gather"):
        return ()
    below = (use.node for value in node.outputs for use in value.uses())
    return tuple(dict.fromkeys(module for user in below for module in _modules_below(user, depth - 1)))


def _quantized_modules(model: ir.Model) -> Iterator[str]:
    for node in model.graph:
        if modules_of(node) and any(dequantized_input(value) for value in node.inputs[:2]):
            yield from modules_of(node)


def _opset_finding(opset: int) -> tuple[Finding, ...]:
    if OLDEST_OPSET <= opset <= NEWEST_OPSET:
        return ()
    why = f"opset {opset}, TensorRT documents {OLDEST_OPSET} to {NEWEST_OPSET}"
    return (Finding("opset", "warning", "(model)", (), why, "export again with a standard opset"),)
