"""How many positions a decoder graph has, read from its rotary tables."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import BackendError

_TABLES = ("cos_cache", "cos_cached")


def max_positions(model: ir.Model) -> int:
    """Returns the number of rows of the smallest rotary table: the positions that the graph can be given.

    Raises:
        BackendError: The graph has no rotary table.
    """
    rows = [
        int(value.shape[0])
        for name, value in model.graph.initializers.items()
        if name.endswith(_TABLES) and value.shape is not None and isinstance(value.shape[0], int)
    ]
    if not rows:
        raise BackendError(
            "The graph has no rotary table (an initializer named *.cos_cache), so its longest sequence is unknown: "
            "build the .onnx as it was exported."
        )
    return min(rows)
