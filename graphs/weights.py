"""Weights that are computed one at a time, while they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError

ReadFloat32 = Callable[[], np.ndarray]


class LazyWeight(ir.LazyTensor):
    """A weight that is read in float32, changed in float32 and cast to the graph's type, each time it is asked for.

    Nothing is kept: reading comes from a memory-mapped checkpoint, so a graph of such weights needs the memory of one.

    Attributes:
        read_float32: Returns the value in float32; may return a view of mapped memory that must not be written to.
    """

    def __init__(self, name: str, read_float32: ReadFloat32, shape: Sequence[int], dtype: ir.DataType) -> None:
        """Describes a weight.

        Args:
            name: Name of the initializer.
            read_float32: Returns the value as float32 of `shape`.
            shape: Static shape.
            dtype: Floating-point type that it has in the graph.
        """
        super().__init__(self._evaluate_cast, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.read_float32 = read_float32

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r})"

    def changed(
        self, change: Callable[[np.ndarray], np.ndarray], *, name: str | None = None, shape: Sequence[int] | None = None
    ) -> LazyWeight:
        """Returns the weight with `change` applied to its float32 value whenever that is read.

        Args:
            change: Pure function; must not write to its argument.
            name: New name, or the same.
            shape: New shape, or the same.
        """
        read = self.read_float32
        return LazyWeight(name or str(self.name), lambda: change(read()), shape or self.shape.numpy(), self.dtype)

    def _evaluate_cast(self) -> ir.Tensor:
        value = self.read_float32()
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(value.astype(self.dtype.numpy(), copy=False))
        if self.dtype == ir.DataType.FLOAT16 and not np.isfinite(cast).all():
            raise GraphError(
                f"{self.name}: values up to {np.abs(value).max():.4g} do not fit FP16 (largest 65504): export with "
                "--dtype bf16 or fp32."
            )
        return ir.Tensor(cast, dtype=self.dtype, name=self.name)


def lazy_weight(initializer: ir.Value) -> LazyWeight:
    """Returns the LazyWeight behind an initializer, wrapping a tensor of another kind.

    Raises:
        GraphError: The initializer has no value.
    """
    tensor = initializer.const_value
    if isinstance(tensor, LazyWeight):
        return tensor
    if tensor is None:
        raise GraphError(f"The initializer {initializer.name} has no value: the graph was built without its weights.")
    return LazyWeight(
        str(initializer.name), lambda: tensor.numpy().astype(np.float32), tensor.shape.numpy(), tensor.dtype
    )


def set_weight(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Registers `tensor` as an initializer under its own name and returns the value.

    Raises:
        GraphError: The name is taken by another initializer.
    """
    name = str(tensor.name)
    if name in graph.initializers:
        raise GraphError(f"The graph already has an initializer named {name}.")
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
