"""The head as a graph of its own, so that the prefill form and the decode form share one copy of its packed weight."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from spikeexport.graphs.onnxruntime.block_embedding import HEAD
from spikeexport.graphs.onnxruntime.constants import constant_shape
from spikeexport.graphs.onnxruntime.weights import MODULE_KEY

SPLIT_HEAD = "split-head"
"""What switches the cut off."""

HIDDEN = "hidden"
"""Output of the body and input of the head: float32 [batch, kept, H], behind the final norm."""


def split_head(model: ir.Model) -> ir.Model | str:
    """Cuts `model` in front of the head; `model` becomes the body, with the output `hidden` in the place of `logits`.

    Args:
        model: A lowered graph, changed in place unless a reason comes back.

    Returns:
        The head: from `hidden` to `logits`. Or the reason why there is no such cut.
    """
    head = model.clone()
    reason = _why_not_separable(head.graph)
    if reason is not None:
        return reason
    for part, keep in ((model, _keep_body), (head, _keep_head)):
        keep(part.graph, _head_node(part.graph))
        RemoveUnusedNodesPass()(part)
        _drop_unread_inputs(part.graph)
    return head


def _head_node(graph: ir.Graph) -> ir.Node:
    return next(node for node in graph if node.metadata_props.get(MODULE_KEY) == HEAD)


def _why_not_separable(graph: ir.Graph) -> str | None:
    nodes = [node for node in graph if node.metadata_props.get(MODULE_KEY) == HEAD]
    if len(nodes) != 1 or not nodes[0].inputs or nodes[0].inputs[0] is None:
        return f"{len(nodes)} nodes compute {HEAD}, expected 1"
    hidden = nodes[0].inputs[0]
    if hidden.producer() is None or hidden.shape is None or hidden.shape.rank() != 3 or _width(nodes[0]) is None:
        return f"the input of {nodes[0].name} is not computed as [batch, kept, H]"
    behind: set[ir.Value] = {hidden}
    for node in graph:
        if any(value in behind for value in node.inputs):
            behind.update(node.outputs)
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    if logits not in behind or sum(value in behind for value in graph.outputs) != 1:
        return f"the logits are not all that comes out behind {nodes[0].name}"
    entering = [value for value in _needed_values(logits, hidden) if value.is_graph_input()]
    return f"{entering[0].name} enters behind {nodes[0].name}" if entering else None


def _needed_values(end: ir.Value | None, start: ir.Value) -> set[ir.Value]:
    """Returns every value that `end` is computed of, stopping at `start`."""
    found: set[ir.Value] = set()
    waiting = [end]
    while waiting:
        value = waiting.pop()
        if value is None or value in found or value is start:
            continue
        found.add(value)
        node = value.producer()
        waiting.extend(node.inputs if node is not None else ())
    return found


def _width(node: ir.Node) -> int | None:
    """Returns H."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int()
    shape = constant_shape(node.inputs[1]) or tuple(getattr(node.inputs[1], "shape", None) or ())
    return shape[0] if shape and isinstance(shape[0], int) else None


def _keep_body(graph: ir.Graph, node: ir.Node) -> None:
    hidden = node.inputs[0]
    assert hidden is not None
    hidden.name, hidden.shape = HIDDEN, ir.Shape(["batch", "kept", _width(node)])
    place = next(index for index, value in enumerate(graph.outputs) if value.name == "logits")
    graph.outputs[place] = hidden


def _keep_head(graph: ir.Graph, node: ir.Node) -> None:
    hidden = node.inputs[0]
    assert hidden is not None
    entry = ir.val(HIDDEN, ir.DataType.FLOAT, ["batch", "kept", _width(node)])
    graph.inputs.append(entry)
    ir.convenience.replace_all_uses_with(hidden, entry)
    graph.outputs[:] = [value for value in graph.outputs if value.name == "logits"]


def _drop_unread_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
