"""A loaded engine: its runtime and one execution context per profile, on one CUDA stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spikeexport.backends.tensorrt.flavor import Flavor, load_module
from spikeexport.backends.tensorrt.logger import BuildLog
from spikeexport.backends.tensorrt.profiles import PROFILE_NAMES
from spikeexport.backends.tensorrt.request import ENGINE_NAME
from spikeexport.calibration.foundation.errors import BackendError, one_line
from spikeexport.calibration.foundation.progress import warn

if TYPE_CHECKING:
    import torch

RUNTIME_CACHE_NAME = "runtime.cache"
"""File beside an engine where TensorRT-RTX keeps the kernels that it compiled on this machine."""


class EngineSession:
    """Runs an engine on device buffers that the caller owns.

    Attributes:
        device: Where the buffers have to be, in PyTorch's words.
        stream: The CUDA stream that all work is queued on.
        input_names: The engine's inputs.
        output_names: The engine's outputs.
    """

    device = "cuda"

    def __init__(self, flavor: Flavor, folder: Path) -> None:
        """Loads `folder`'s engine and creates its contexts.

        Raises:
            BackendError: The library refuses the engine, or PyTorch has no CUDA to hold its buffers.
        """
        import torch

        if not torch.cuda.is_available():
            raise BackendError(
                "The engine's buffers are PyTorch CUDA tensors, and the installed torch has no CUDA: install a CUDA "
                "build of torch."
            )
        self._module = load_module(flavor)
        self._log = BuildLog(self._module)
        self._runtime = self._module.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine((folder / ENGINE_NAME).read_bytes())
        if self._engine is None:
            raise BackendError(f"{flavor.title} cannot load {folder / ENGINE_NAME}: {self._log.first_error()}.")
        self.stream = torch.cuda.Stream()
        self._cache_path = folder / RUNTIME_CACHE_NAME
        self._runtime_cache: Any = None
        self._contexts = [self._create_context(index) for index in range(len(PROFILE_NAMES))]
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = self._module.TensorIOMode
        self.input_names = tuple(name for name in names if self._engine.get_tensor_mode(name) == modes.INPUT)
        self.output_names = tuple(name for name in names if self._engine.get_tensor_mode(name) == modes.OUTPUT)

    @contextlib.contextmanager
    def queue(self) -> Iterator[None]:
        """Puts the PyTorch work of the body on the engine's stream, and waits for all of it at the end."""
        import torch

        with torch.cuda.stream(self.stream):
            yield
        self.stream.synchronize()

    def dtype(self, name: str) -> torch.dtype:
        """Returns the element type of an input or output as PyTorch's."""
        import torch

        words = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "BOOL": "bool"}
        word = self._engine.get_tensor_dtype(name).name
        dtype: torch.dtype = getattr(torch, words.get(word, word.lower()))
        return dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an input or output, -1 for dynamic axes."""
        return tuple(self._engine.get_tensor_shape(name))

    def run(
        self,
        profile: int,
        shapes: Mapping[str, Sequence[int]],
        addresses: Mapping[str, int],
    ) -> None:
        """Queues one run on the stream; outputs are valid once the stream has been synchronised.

        Args:
            profile: Index of the optimisation profile.
            shapes: Shape of every input.
            addresses: Device address of every input and output.

        Raises:
            BackendError: A shape lies outside the profile, or the run fails.
        """
        context = self._contexts[profile]
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise BackendError(
                    f"The engine's {PROFILE_NAMES[profile]} profile does not take {name} of shape {list(shape)}: "
                    "build it with a larger --max-batch or --max-seq."
                )
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self.stream.cuda_stream):
            raise BackendError(f"The engine's {PROFILE_NAMES[profile]} run failed: {self._log.first_error()}.")

    def close(self) -> None:
        """Keeps the compiled kernels for the next start and releases the engine."""
        self._save_runtime_cache()
        self._contexts.clear()
        self._runtime_cache = self._engine = self._runtime = None

    def _create_context(self, profile: int) -> Any:
        """Creates a context on its own profile; captures CUDA graphs where the library does so by itself (RTX)."""
        engine, module = self._engine, self._module
        if hasattr(engine, "create_runtime_config") and hasattr(module, "IRuntimeCache"):
            context = engine.create_execution_context(self._runtime_config(module))
        else:
            context = engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, self.stream.cuda_stream):
            raise BackendError(
                f"The engine has no usable {PROFILE_NAMES[profile]} profile: {self._log.first_error()}. Build it again."
            )
        self.stream.synchronize()
        return context

    def _runtime_config(self, module: ModuleType) -> Any:
        config = self._engine.create_runtime_config()
        if hasattr(module, "CudaGraphStrategy"):
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._runtime_cache is None:
            self._runtime_cache = config.create_runtime_cache()
            if self._cache_path.is_file():
                # refused (False) after a driver or GPU change: the kernels are then compiled again
                self._runtime_cache.deserialize(self._cache_path.read_bytes())
        config.set_runtime_cache(self._runtime_cache)
        return config

    def _save_runtime_cache(self) -> None:
        if self._runtime_cache is None:
            return
        try:
            self._cache_path.write_bytes(bytes(self._runtime_cache.serialize()))
        except OSError as error:
            warn(
                f"The compiled kernels cannot be kept in {self._cache_path} ({one_line(error)}): "
                "the next start compiles them again."
            )
