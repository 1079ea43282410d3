"""The two edits that all passes share: putting a node in front of another one, and handing over a value's readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir


def insert_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    name: str | None = None,
    outputs: Sequence[str] = ("",),
    dtype: ir.DataType | None = ir.DataType.FLOAT,
    metadata: Mapping[str, str] | None = None,
) -> ir.Node:
    """Creates a node right before `anchor` in its graph.

    Args:
        anchor: The node to stand in front of.
        op_type: Operator.
        inputs: Input values; None is an absent optional input.
        attributes: Plain attribute values.
        domain: Operator domain.
        name: Node name.
        outputs: Names of the outputs; "" lets the graph choose.
        dtype: Element type of the first output.
        metadata: Metadata properties, `spikeexport.module` for example.
    """
    values = [ir.Value(name=output or None) for output in outputs]
    values[0].type = None if dtype is None else ir.TensorType(dtype)
    node = ir.node(
        op_type,
        inputs,
        attributes or None,
        domain=domain,
        outputs=values,
        name=name,
        metadata_props=dict(metadata or {}),
    )
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    return node


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Gives all readers of `old`, graph outputs included, to `new`, with the name of a graph output, type and shape."""
    new.type = new.type or old.type
    new.shape = new.shape or old.shape
    if old.is_graph_output():
        name = old.name
        old.name = f"{name}.replaced"
        new.name = name
        new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def only_reader(value: ir.Value) -> ir.Node | None:
    """Returns the single node that reads `value`, or None when there are none, several, or it is a graph output."""
    readers = [node for node, _ in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """Returns the node that computes `value` when it is of that operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == domain else None
