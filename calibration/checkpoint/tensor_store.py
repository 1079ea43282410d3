"""The tensors of a checkpoint, memory-mapped and read by name."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.calibration.checkpoint.safetensors_header import TensorEntry
from spikeexport.calibration.foundation.errors import CheckpointError, one_line

if TYPE_CHECKING:
    import torch


class TensorStore:
    """Reads tensors lazily; each file is mapped once, on its first tensor."""

    def __init__(self, entries: dict[str, TensorEntry]) -> None:
        self.entries = entries
        self._files: dict[Path, Any] = {}
        self._stack = ExitStack()

    def read(self, name: str) -> torch.Tensor:
        """Returns the tensor `name` in the file's dtype, as a view of the mapped file.

        Raises:
            CheckpointError: There is no such tensor, or the file cannot be mapped.
        """
        if name not in self.entries:
            raise CheckpointError(f"The checkpoint has no tensor {name} ({len(self.entries)} tensors).")
        return self._open(self.entries[name].file).get_tensor(name)

    def _open(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._files:
            try:
                self._files[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"Cannot map {file}: {one_line(error)}; download or copy it again.") from error
        return self._files[file]
