"""ONNX Runtime in the place of a loaded engine: the same calls on raw addresses, in the CPU's memory.

It lets the runner's own work (masks, positions, the cache's turns, limits) be tested where no GPU is.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class OnnxSession:
    """Runs a portable .onnx behind the interface of `EngineSession`."""

    device = "cpu"

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._io = {item.name: item for item in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.input_names = tuple(item.name for item in self._session.get_inputs())
        self.output_names = tuple(item.name for item in self._session.get_outputs())
        self.profiles: list[int] = []

    @contextlib.contextmanager
    def queue(self) -> Iterator[None]:
        yield

    def dtype(self, name: str) -> torch.dtype:
        return torch.from_numpy(np.empty(0, _TYPES[self._io[name].type])).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._io[name].shape)

    def run(self, profile: int, shapes: Mapping[str, Sequence[int]], addresses: Mapping[str, int]) -> None:
        self.profiles.append(profile)
        assert set(shapes) == set(self.input_names)
        assert set(addresses) == {*self.input_names, *self.output_names}
        feeds = {name: self._view(name, addresses[name], shape).copy() for name, shape in shapes.items()}
        for name, result in zip(self.output_names, self._session.run(list(self.output_names), feeds), strict=True):
            self._view(name, addresses[name], result.shape)[...] = result

    def close(self) -> None:
        self.profiles.clear()

    def _view(self, name: str, address: int, shape: Sequence[int]) -> np.ndarray:
        dtype = np.dtype(_TYPES[self._io[name].type])
        size = math.prod(shape)
        memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
        return np.frombuffer(memory, dtype=dtype, count=size).reshape(shape)
