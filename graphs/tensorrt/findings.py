"""What a lint rule is and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

Effect = Literal["refused", "fallback", "unfused", "warning"]
"""What TensorRT does: refuses the graph; computes a linear outside INT8; splits an attention into several kernels;
accepts it with a risk that the finding names."""


@dataclass(frozen=True)
class Finding:
    """One pattern in a graph that TensorRT compiles badly or not at all.

    Attributes:
        rule: Name of the rule.
        effect: What TensorRT makes of it.
        node: Name of the ONNX node.
        modules: Module paths of the linears that it costs; empty where no linear is concerned.
        why: What was found, in one phrase.
        cure: What to do.
    """

    rule: str
    effect: Effect
    node: str
    modules: tuple[str, ...]
    why: str
    cure: str


@dataclass(frozen=True)
class Surroundings:
    """What a rule may know beside the node.

    Attributes:
        opset: Version of the ONNX operator set.
        planned: Module paths of the linears that should become INT8.
    """

    opset: int
    planned: frozenset[str]


@dataclass(frozen=True)
class Rule:
    """One row of the pattern table.

    Attributes:
        name: Short name.
        effect: What TensorRT makes of the pattern.
        operators: Operator types that the rule looks at; empty = all.
        check: Returns what is wrong with a node in one phrase, or None.
        cure: What to do about it.
    """

    name: str
    effect: Effect
    operators: tuple[str, ...]
    check: Callable[[ir.Node, Surroundings], str | None]
    cure: str
