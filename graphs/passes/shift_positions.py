"""Counts the prefix in the positions, inside the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.insertion import NodeInserter

_NODE = "position_ids/shift"


class ShiftPositions(ir.passes.InPlacePass):
    """Everything that reads `position_ids` reads `position_ids + P`, so that callers count from 0 behind the prefix."""

    def __init__(self, prefix_length: int) -> None:
        """Takes the number of baked prefix positions P."""
        self._length = prefix_length

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            GraphError: The prefix leaves no position in the rotary caches.
        """
        positions = next((value for value in model.graph.inputs if value.name == "position_ids"), None)
        if not self._length or positions is None or any(node.name == _NODE for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        self._check_room(positions)
        readers = list(positions.uses())
        put = NodeInserter(model.graph, model.graph[0])
        length = put.constant("position_ids.prefix_length", np.array([self._length], np.int64))
        shifted = put("Add", positions, length, name=_NODE, dtype=ir.DataType.INT64, shape=positions.shape)
        for node, index in readers:
            node.replace_input_with(index, shifted)
        return ir.passes.PassResult(model, modified=True)

    def _check_room(self, positions: ir.Value) -> None:
        for node, _ in positions.uses():
            table = node.inputs[0]
            if node.op_type == "Gather" and table is not None and table.shape is not None:
                rows = int(table.shape[0])  # type: ignore[arg-type]
                if rows <= self._length:
                    raise GraphError(
                        f"The prefix of {self._length} tokens leaves no room in the model's {rows} positions: "
                        "choose a shorter prefix."
                    )
