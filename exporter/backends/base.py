"""The one interface that every backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from spikeexport.backends.manifest import Compiled

if TYPE_CHECKING:
    from spikeexport.graphs.onnxruntime.lowering import DecodeForm
    from spikeexport.graphs.reading import PortableModel
    from spikeexport.runners.base import CausalRunner


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; a backend refuses what it cannot honour.

    Attributes:
        compute_capabilities: GPU targets such as "8.9" for engines built ahead of time; empty = the backend's default.
        max_batch: Largest batch.
        max_seq: Most tokens behind the prefix, cache included; None = the model's limit, at most `DEFAULT_MAX_SEQ`.
        timing_cache: File of kernel timings, read when it exists and written back.
        workspace_bytes: Most scratch memory of one kernel; None = the backend's own limit.
        without: Names of lowering passes to leave out, for a backend that `lowers`.
        decode: How single tokens run, for a backend that `lowers`: "int8" or "weight-only".
    """

    DEFAULT_MAX_SEQ: ClassVar[int] = 2048

    compute_capabilities: tuple[str, ...] = ()
    max_batch: int = 4
    max_seq: int | None = None
    timing_cache: Path | None = None
    workspace_bytes: int | None = None
    without: tuple[str, ...] = ()
    decode: DecodeForm = "int8"


class Backend(ABC):
    """Compiles a portable .onnx into a folder and runs such folders.

    Attributes:
        name: The name in the registry and after `--backend`.
        lowers: Whether it rewrites the graph by passes that can be left out.
    """

    name: ClassVar[str]
    lowers: ClassVar[bool] = False

    @abstractmethod
    def why_unavailable(self) -> str | None:
        """Says in one sentence what is missing to build here, with the command that installs it; None = nothing.

        Native libraries are first touched in a subprocess, so that a broken install is an answer and no crash.
        """

    def why_cannot_run(self) -> str | None:
        """Says in one sentence why what this backend builds cannot run on this machine; None = it can."""
        return self.why_unavailable()

    @abstractmethod
    def build(self, portable: PortableModel, folder: Path, options: BuildOptions) -> Compiled:
        """Compiles `portable` into `folder`, an existing empty folder that gets its final name when all is done.

        The caller copies the tokenizer and the generation settings and writes engine.json.

        Raises:
            BackendError: The backend is missing, refuses the network or the options, or cannot say what it compiled.
        """

    @abstractmethod
    def runner(self, folder: Path, **options: Any) -> CausalRunner:
        """Opens what `build` wrote.

        Args:
            folder: The built folder.
            **options: What the backend's runner takes; an unknown one is a TypeError.

        Raises:
            BackendError: This machine cannot run it (no GPU, another version or GPU than it was built for).
        """
