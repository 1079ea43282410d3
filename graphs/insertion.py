"""Putting new nodes into a graph in front of an existing one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


class NodeInserter:
    """Appends nodes before an anchor node; each is named and its value gets the node's name with `/output`."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node) -> None:
        """Prepares insertion into `graph` before `anchor`."""
        self._graph = graph
        self._anchor = anchor

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | Sequence[int | str | None] | None = None,
        **attributes: int | float | Sequence[int],
    ) -> ir.Value:
        """Inserts a node of the standard domain with one output and returns that output.

        Args:
            op_type: ONNX operator.
            *inputs: Inputs; None for an optional one left out.
            name: Name of the node.
            dtype: Element type of the output, where the caller knows it.
            shape: Shape of the output, where the caller knows it.
            **attributes: Attributes of the operator.
        """
        node = ir.node(op_type, list(inputs), attributes=attributes or None, name=name)
        self._graph.insert_before(self._anchor, node)
        value = node.outputs[0]
        value.name = f"{name}/output"
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        if shape is not None:
            value.shape = shape if isinstance(shape, ir.Shape) else ir.Shape(shape)
        return value

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Returns the initializer `name`, making it from `array` where the graph lacks it."""
        existing = self._graph.initializers.get(name)
        if existing is not None:
            return existing
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value
