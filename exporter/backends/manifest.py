"""engine.json: what a built folder holds, where it came from, and what its backend really compiled."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeAlias

from pydantic import Field
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.calibration.foundation.records import Artifact, Record
from spikeexport.calibration.records.plan import Prefix

MANIFEST_NAME = "engine.json"
"""File name of the manifest inside every built folder."""


Target: TypeAlias = dict[str, str | int | float | list[str]]
"""Where a built model runs, in plain words and numbers."""


class Fallback(Record):
    """A planned linear that the backend did not compile to an INT8 matrix product.

    Attributes:
        name: Module path.
        why: One phrase: what stood in the way and, where it is known, the cure.
    """

    name: str
    why: str


class Leftover(Record):
    """Operations that remained beside the real work: Q/DQ that did not fuse, casts, copies between layouts.

    Attributes:
        count: How many the steady state runs (one profile).
        bytes_moved: Bytes read and written per token position, or None where the backend does not say.
    """

    count: int
    bytes_moved: int | None = None


class EngineTruth(Record):
    """What a backend really compiled, read back from the backend and not from what was asked for.

    Attributes:
        planned: Module paths of the linears that the plan quantises.
        fallbacks: Those of them that are not INT8, with the reason.
        merged: INT8 matrix product -> module paths of the linears computed in it; every INT8 linear is in exactly one.
        attention_fused: Number of decoder layers whose attention is one kernel.
        attention_layers: Number of decoder layers that have attention.
        attention_unfused: Module paths of the attentions that are not one kernel.
        attention_why: Those of them whose reason is known -> the reason with its cure.
        leftovers: Kind of operation -> what is left of it.
        kernels: Kernels per run of each profile ("prefill", "decode"); empty where the backend does not say.
    """

    planned: tuple[str, ...]
    fallbacks: tuple[Fallback, ...] = ()
    merged: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    attention_fused: int = 0
    attention_layers: int = 0
    attention_unfused: tuple[str, ...] = ()
    attention_why: dict[str, str] = Field(default_factory=dict)
    leftovers: dict[str, Leftover] = Field(default_factory=dict)
    kernels: dict[str, int] = Field(default_factory=dict)

    @property
    def int8(self) -> int:
        """Number of planned linears that are INT8 in the compiled model."""
        return len(self.planned) - len(self.fallbacks)

    @property
    def int8_coverage(self) -> float:
        """INT8 share of the planned linears; 1.0 for a plan that quantises nothing."""
        return self.int8 / len(self.planned) if self.planned else 1.0


class TensorSpec(Record):
    """An input or output.

    Attributes:
        name: Its name.
        dtype: Element type: "fp32", "fp16", "bf16", "int8", "int32", "int64" or "bool".
        shape: Its axes, -1 for dynamic ones.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Signature(Record):
    """The inputs and outputs of a model, in its own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Compiled(Record):
    """What `Backend.build` hands back; `build` adds the provenance and writes the manifest.

    Attributes:
        truth: What was really compiled.
        target: Where it runs, plain words and numbers: device, compute capabilities, batch and sequence limits.
        versions: Name -> version of the tools that loading depends on.
        signature: Inputs and outputs of an engine, where no graph beside it says them.
    """

    truth: EngineTruth
    target: Target
    versions: dict[str, str]
    signature: Signature | None = None


class BuiltFile(Record):
    """One file of a built folder.

    Attributes:
        name: Path relative to the folder.
        size_bytes: Its size.
    """

    name: str
    size_bytes: int


class EngineManifest(Artifact):
    """The manifest beside a built model.

    Attributes:
        backend: Name in the registry of backends.
        model: What the user called the checkpoint.
        plan_sha256: Digest of the plan that the .onnx carries, or None where it carries none.
        onnx_sha256: SHA-256 of the portable .onnx (the graph file, whose metadata hash its plan).
        linears: Number of decoder linears, planned or not.
        excluded: Module paths that the plan leaves unquantised.
        prefix: Tokens baked in front of every sequence.
        files: The folder's files, engine.json left out.
        truth: What was really compiled.
        target: See `Compiled`.
        versions: See `Compiled`, and spikeexport's own.
        signature: See `Compiled`.
    """

    KIND: ClassVar[str] = "engine"

    backend: str
    model: str
    plan_sha256: str | None
    onnx_sha256: str
    linears: int
    excluded: tuple[str, ...]
    prefix: Prefix | None
    files: tuple[BuiltFile, ...]
    truth: EngineTruth
    target: Target
    versions: dict[str, str]
    signature: Signature | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in the folder, engine.json left out."""
        return sum(file.size_bytes for file in self.files)


def load_manifest(folder: Path, backend: str | None = None) -> EngineManifest:
    """Reads a built folder's manifest and checks that the files it lists are there whole.

    Args:
        folder: What `build` wrote.
        backend: Name of the backend that is about to load it; None accepts every backend.

    Raises:
        BackendError: The folder was built for another backend, or a file is missing or cut.
        PlanError: engine.json is malformed.
        SpikeExportError: engine.json is missing.
    """
    manifest = EngineManifest.load(folder / MANIFEST_NAME)
    if backend is not None and manifest.backend != backend:
        raise BackendError(
            f"{folder} was built for {manifest.backend}, not for {backend}: build it again with --backend {backend}."
        )
    for file in manifest.files:
        path = folder / file.name
        found = path.stat().st_size if path.exists() else None
        if found != file.size_bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise BackendError(f"{path} {state}, {file.size_bytes} bytes were built: build it again.")
    return manifest


def list_files(folder: Path) -> tuple[BuiltFile, ...]:
    """Lists a folder's files for its manifest, engine.json left out, sorted by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return tuple(BuiltFile(name=str(path.relative_to(folder)), size_bytes=path.stat().st_size) for path in paths)
