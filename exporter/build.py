"""`spikeexport build`: from a portable .onnx (or a MODEL) to a folder that one backend runs."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.backends.base import Backend, BuildOptions
from spikeexport.backends.manifest import MANIFEST_NAME, Compiled, EngineManifest, EngineTruth, list_files
from spikeexport.backends.registry import open_backend
from spikeexport.calibration.foundation.errors import BackendError, CheckFailed, UsageError
from spikeexport.calibration.foundation.files import sha256_file, staged_outputs
from spikeexport.calibration.foundation.progress import say
from spikeexport.defaults import MIN_INT8_COVERAGE

if TYPE_CHECKING:
    from spikeexport.graphs.onnxruntime.lowering import DecodeForm
    from spikeexport.graphs.reading import PortableModel


_CAPABILITY = re.compile(r"\d+\.\d")


@dataclass(frozen=True)
class BuildResult:
    """What `build` made.

    Attributes:
        path: The built folder.
        manifest: What it holds and what was really compiled.
        seconds: Time taken.
    """

    path: Path
    manifest: EngineManifest
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `build --json` prints: the keys of `inspect` for the engine, `path`, `seconds`."""
        from spikeexport.inspect import describe_engine

        return {"path": str(self.path), "seconds": self.seconds, **describe_engine(self.manifest)}


def build(
    source: str | Path,
    output: str | Path | None = None,
    *,
    backend: str = "auto",
    compute_capabilities: Sequence[str] = (),
    max_batch: int = BuildOptions.max_batch,
    max_seq: int | None = None,
    min_int8_coverage: float = MIN_INT8_COVERAGE,
    timing_cache: str | Path | None = None,
    workspace_bytes: int | None = None,
    without: Sequence[str] = (),
    decode: DecodeForm = BuildOptions.decode,
) -> BuildResult:
    """Compiles `source` for one backend.

    Args:
        source: An .onnx written by `export`, or a MODEL, which is exported first with the defaults.
        output: Folder to write; default `<stem>.<backend>` beside the .onnx.
        backend: Name in the registry, or "auto".
        compute_capabilities: GPU targets such as "8.9", for engines built ahead of time.
        max_batch: Largest batch.
        max_seq: Most tokens behind the prefix, cache included; None = the model's limit up to a default.
        min_int8_coverage: Least share of the planned linears that must really be INT8.
        timing_cache: File of kernel timings, read when it exists and written back.
        workspace_bytes: Most scratch memory of one kernel.
        without: Lowering passes to leave out (onnxruntime).
        decode: How single tokens run (onnxruntime): "int8" as prompts do, in one graph; "weight-only" with unquantised
            inputs, in a graph of their own over the same file.

    Raises:
        UsageError: Options that are out of range or contradict each other.
        CheckFailed: The coverage is below `min_int8_coverage`; nothing is left under the output's name.
        BackendError: The backend is missing or refuses.
        GraphError: The .onnx cannot be read.
    """
    options = BuildOptions(
        compute_capabilities=tuple(compute_capabilities),
        max_batch=max_batch,
        max_seq=max_seq,
        timing_cache=Path(timing_cache) if timing_cache is not None else None,
        workspace_bytes=workspace_bytes,
        without=tuple(without),
        decode=decode,
    )
    _check_ranges(options, min_int8_coverage)
    started = time.monotonic()
    engine_backend = open_backend(backend)
    if options.without and not engine_backend.lowers:
        raise UsageError(f"--without leaves lowering passes out, and {engine_backend.name} has none: leave it out.")
    if options.decode != BuildOptions.decode and not engine_backend.lowers:
        raise UsageError(
            f"--decode chooses among ONNX Runtime's forms, and {engine_backend.name} has one: leave it out."
        )
    reason = engine_backend.why_unavailable()
    if reason is not None:
        raise BackendError(reason)
    onnx = _portable_file(source, output)
    target = Path(output) if output is not None else onnx.with_name(f"{onnx.stem}.{engine_backend.name}")
    manifest = _build_folder(onnx, target, engine_backend, options, min_int8_coverage)
    return BuildResult(target, manifest, time.monotonic() - started)


def _check_ranges(options: BuildOptions, min_int8_coverage: float) -> None:
    if options.max_batch < 1:
        raise UsageError(f"--max-batch is {options.max_batch}: give 1 or more.")
    if options.max_seq is not None and options.max_seq < 2:
        raise UsageError(f"--max-seq is {options.max_seq}: give 2 or more (a prompt token and a new one).")
    if not 0.0 <= min_int8_coverage <= 1.0:
        raise UsageError(f"--min-int8-coverage is {min_int8_coverage}: give a share between 0 and 1.")
    malformed = [item for item in options.compute_capabilities if not _CAPABILITY.fullmatch(item)]
    if malformed:
        raise UsageError(f"--compute-capability {malformed[0]}: give major and minor version, such as 8.9.")
    if len(set(options.compute_capabilities)) < len(options.compute_capabilities):
        raise UsageError(f"--compute-capability names one twice: {', '.join(options.compute_capabilities)}.")
    if options.workspace_bytes is not None and options.workspace_bytes < 1 << 20:
        raise UsageError(f"A workspace of {options.workspace_bytes} bytes holds no kernel: give at least 1 MiB.")


def _portable_file(source: str | Path, output: str | Path | None) -> Path:
    """Returns the .onnx to build; exports a MODEL with the defaults beside the output first."""
    path = Path(source)
    if path.suffix == ".onnx":
        return path
    from spikeexport.export import export

    folder = Path(output).parent if output is not None else Path.cwd()
    onnx = folder / f"{path.stem if path.suffix == '.gguf' else path.name}.onnx"
    if onnx.exists():
        raise UsageError(
            f"{source} would be exported to {onnx} first, which exists: build that file, or choose another place "
            "with -o."
        )
    say(f"Exporting {source} to {onnx} with the defaults first")
    export(str(source), onnx)
    return onnx


def _build_folder(
    onnx: Path, target: Path, backend: Backend, options: BuildOptions, min_int8_coverage: float
) -> EngineManifest:
    from spikeexport.graphs.reading import read_portable

    portable = read_portable(onnx)
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise UsageError(f"{target} exists and is no built folder: choose another one with -o.")
    with staged_outputs(target) as staging:
        folder = staging / target.name
        folder.mkdir()
        compiled = backend.build(portable, folder, options)
        _check_coverage(compiled.truth, min_int8_coverage, onnx)
        _copy_assets(onnx, folder)
        manifest = _manifest(portable, folder, backend, compiled)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check_coverage(truth: EngineTruth, least: float, onnx: Path) -> None:
    if truth.int8_coverage >= least:
        return
    worst = "; ".join(f"{fallback.name}: {fallback.why}" for fallback in truth.fallbacks[:3])
    more = f" and {len(truth.fallbacks) - 3} more" if len(truth.fallbacks) > 3 else ""
    raise CheckFailed(
        f"{onnx}: {truth.int8} of {len(truth.planned)} planned linears became INT8 (coverage "
        f"{truth.int8_coverage:.3f}, at least {least:g} was asked for); fell back: {worst}{more}. Nothing was written; "
        "--min-int8-coverage 0 keeps the result for inspection."
    )


def _copy_assets(onnx: Path, folder: Path) -> None:
    """Copies the tokenizer and the generation settings, so that the folder runs on its own."""
    assets = onnx.with_name(f"{onnx.stem}.assets")
    if assets.is_dir():
        shutil.copytree(assets, folder, dirs_exist_ok=True)


def _manifest(portable: PortableModel, folder: Path, backend: Backend, compiled: Compiled) -> EngineManifest:
    from importlib.metadata import version

    plan = portable.plan
    return EngineManifest(
        backend=backend.name,
        model=plan.model.name if plan else portable.path.stem,
        plan_sha256=plan.digest() if plan else None,
        onnx_sha256=sha256_file(portable.path),
        linears=len(portable.linears),
        excluded=plan.excluded_linears if plan else (),
        prefix=portable.prefix,
        files=list_files(folder),
        truth=compiled.truth,
        target=compiled.target,
        versions={"spikeexport": version("spikeexport"), **compiled.versions},
        signature=compiled.signature,
    )
