"""The linears that read one input of a plan: where they are, what they read, and putting something in between."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import InputSite
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.linears import named_matmuls, planned_matmul


@dataclass(frozen=True)
class SiteReaders:
    """The linears of a site.

    Attributes:
        nodes: Their MatMuls, in the order of the site's linears.
        source: The tensor that all of them read.
        put: Inserts nodes in front of the first of them.
    """

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    put: NodeInserter

    def read(self, value: ir.Value) -> None:
        """Lets all of them read `value` in the place of `source`."""
        for node in self.nodes:
            node.replace_input_with(0, value)


class SiteFinder:
    """Finds the linears of sites in one graph, whose MatMuls stay in their order meanwhile."""

    def __init__(self, graph: ir.Graph) -> None:
        """Looks the graph through once."""
        self._graph = graph
        self._matmuls = named_matmuls(graph)
        self._order = {node: index for index, node in enumerate(graph)}

    def readers(self, site: InputSite, does: str) -> SiteReaders:
        """Returns the linears of a site.

        Args:
            site: Of the plan.
            does: What the plan does with it ("quantises"), for messages.

        Raises:
            GraphError: A linear is not in the graph, or they read different tensors.
        """
        nodes = tuple(planned_matmul(self._matmuls, linear, does) for linear in site.linears)
        source = _shared_input(site, nodes)
        return SiteReaders(nodes, source, NodeInserter(self._graph, min(nodes, key=self._order.__getitem__)))


def _shared_input(site: InputSite, nodes: tuple[ir.Node, ...]) -> ir.Value:
    source = nodes[0].inputs[0]
    for node, linear in zip(nodes, site.linears, strict=True):
        if node.inputs[0] is not source:
            raise GraphError(
                f"{linear} reads {node.inputs[0].name if node.inputs[0] else None}, but {site.name}, with which the "
                f"plan lets it share a scale, reads {source.name if source else None}."
            )
    assert source is not None
    return source
