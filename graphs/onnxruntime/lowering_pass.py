"""What every lowering pass is: a rewrite that applies where a graph fits and says why where it does not."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Skip:
    """A place that a pass left in its slower form.

    Attributes:
        where: Name of the node (or "model").
        why: What did not fit, found against expected.
    """

    where: str
    why: str


class LoweringPass(ir.passes.InPlacePass):
    """A rewrite of one form; running it twice changes nothing the second time.

    Attributes:
        name: What switches it off, in kebab case.
        applied: Places rewritten by the last call.
        skips: Places that the last call left alone although they look like its business.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.applied = 0
        self.skips: list[Skip] = []

    @abstractmethod
    def rewrite(self, graph: ir.Graph) -> None:
        """Rewrites `graph` in place, counting in `applied` and explaining in `skips`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the rewrite and removes what it left without a reader."""
        self.applied, self.skips = 0, []
        self.rewrite(model.graph)
        if self.applied:
            model.opset_imports.setdefault(MICROSOFT, 1)
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=self.applied > 0)

    def skip(self, where: ir.Node | str, why: str) -> None:
        """Notes that a place keeps its slower form."""
        name = where if isinstance(where, str) else (where.name or where.op_type)
        self.skips.append(Skip(name, why))
