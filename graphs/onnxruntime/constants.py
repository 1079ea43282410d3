"""Constants of a graph: reading their arrays, adding initializers that are computed only when they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Returns the array of an initializer or Constant output, or None for anything computed at run time."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Returns the shape of a constant without reading its data, or None for anything computed at run time."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(int(size) for size in tensor.shape.numpy())


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Adds a small initializer, or returns the one of that name that is already there."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.initializers.add(value)
    return value


def add_lazy_constant(
    graph: ir.Graph,
    name: str,
    compute: Callable[[], np.ndarray],
    dtype: ir.DataType,
    shape: Sequence[int],
) -> ir.Value:
    """Adds an initializer whose array is computed when the file is written, so that large weights never pile up.

    Args:
        graph: The graph that gets it.
        name: Its name; an initializer of that name that is already there is returned instead.
        compute: Returns the array, of `dtype` and `shape`.
        dtype: Element type.
        shape: Shape.
    """
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(compute()), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    value = ir.val(name, const_value=tensor)
    graph.initializers.add(value)
    return value
