"""Logits only where they are wanted: everything behind the last attention runs on the chosen positions."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import constant_shape
from spikeexport.graphs.onnxruntime.edits import only_reader
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass

POSITIONS = "logits_positions"
"""Graph input int64 [kept]: positions of this step, the same for each row, whose logits are wanted."""

_ATTENTIONS = {("GroupQueryAttention", MICROSOFT), ("Attention", "")}


class GatherLogitPositions(LoweringPass):
    """Adds the input `logits_positions` and gathers those positions right behind the last attention.

    No operator behind the last attention mixes positions, so the last layer's output projection, its MLP, the final
    norm and the head run on the wanted ones only. Logits become [batch, kept, V].
    """

    name = "logit-positions"

    def rewrite(self, graph: ir.Graph) -> None:
        """Gathers each activation that enters the tail of the graph."""
        if any(value.name == POSITIONS for value in graph.inputs):
            return
        attention = next((n for n in reversed(graph) if (n.op_type, n.domain) in _ATTENTIONS), None)
        logits = next((value for value in graph.outputs if value.name == "logits"), None)
        if attention is None or logits is None:
            self.skip("model", "no attention or no output named logits")
            return
        start = _position_wise_start(attention)
        tail = _behind(start)
        if logits.producer() not in tail:
            self.skip("model", "the logits do not come from the last attention")
            return
        entering = _entering(graph, tail, start)
        odd = [value for value in entering if value.shape is None or value.shape.rank() != 3]
        if odd:
            self.skip("model", f"{odd[0].name} enters behind the last attention and is not [batch, sequence, width]")
            return
        self._gather(graph, entering, tail)

    def _gather(self, graph: ir.Graph, entering: list[ir.Value], tail: set[ir.Node]) -> None:
        positions = ir.val(POSITIONS, ir.DataType.INT64, ["kept"])
        graph.inputs.append(positions)
        for value in entering:
            readers = [(node, place) for node, place in value.uses() if node in tail]
            first = min((node for node, _ in readers), key=list(graph).index)
            gathered = ir.Value(name=f"{value.name}.kept", type=value.type)
            assert value.shape is not None
            gathered.shape = ir.Shape([value.shape[0], "kept", value.shape[2]])
            node = ir.node("Gather", [value, positions], {"axis": 1}, outputs=[gathered], name=f"{value.name}/Kept")
            graph.insert_before(first, node)
            for reader, place in readers:
                reader.replace_input_with(place, gathered)
        for node in tail:
            for output in node.outputs:
                if output.shape is not None and output.shape.rank() == 3:
                    output.shape = ir.Shape([output.shape[0], "kept", output.shape[2]])
        self.applied += 1


def _position_wise_start(attention: ir.Node) -> ir.Value:
    """Returns attention's output as [B, S, width]: behind Transpose and Reshape where it comes by heads."""
    output = attention.outputs[0]
    while output.shape is None or output.shape.rank() != 3:
        reader = only_reader(output)
        if reader is None or reader.op_type not in ("Transpose", "Reshape"):
            break
        output = reader.outputs[0]
    return output


def _behind(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [node for node, _ in value.uses()]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(reader for output in node.outputs for reader, _ in output.uses())
    return found


def _entering(graph: ir.Graph, tail: set[ir.Node], start: ir.Value) -> list[ir.Value]:
    """Returns the values computed outside the tail that it reads, constants (and what is computed of them) left out."""
    entering = [start]
    for node in graph:
        if node not in tail:
            continue
        for value in node.inputs:
            if value is None or value in entering or value.producer() in tail or _is_constant(value):
                continue
            entering.append(value)
    return entering


def _is_constant(value: ir.Value) -> bool:
    if constant_shape(value) is not None:
        return True
    node = value.producer()
    return node is not None and all(source is None or _is_constant(source) for source in node.inputs)
