"""What is deployed: an exported .onnx or a built folder, and how its model file is written for a server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spikeexport.assets_folder import ASSET_FILES
from spikeexport.backends.manifest import EngineManifest, Signature, load_manifest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.records.plan import Prefix
from spikeexport.runners.assets import Assets
from spikeexport.runners.subject import built_folder, subject_kind

if TYPE_CHECKING:
    from spikeexport.runners.base import CausalRunner

SourceKind = Literal["onnx", "onnxruntime", "tensorrt", "tensorrt-rtx"]
"""An exported file, or the backend that built a folder."""

MODEL_NAME = "model.onnx"


@dataclass(frozen=True)
class Source:
    """What is deployed.

    Attributes:
        path: The .onnx or the built folder.
        kind: Which of them, and for which backend.
        model: What the user called the checkpoint.
        assets: Tokenizer and configuration.
        prefix: The baked prefix, or None.
        plan_sha256: Digest of the plan, or None.
        onnx_sha256: SHA-256 of the portable .onnx.
        manifest: The built folder's, or None for an .onnx.
    """

    path: Path
    kind: SourceKind
    model: str
    assets: Assets
    prefix: Prefix | None
    plan_sha256: str | None
    onnx_sha256: str
    manifest: EngineManifest | None

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's configuration."""
        return self.assets.config

    def copy_tokenizer(self, folder: Path) -> None:
        """Copies the tokenizer, the configuration and the generation settings into an existing folder."""
        for name in ASSET_FILES:
            if (self.assets.folder / name).is_file():
                shutil.copyfile(self.assets.folder / name, folder / name)


def open_as_deployed(source: Source) -> CausalRunner:
    """Opens the source as the deployed file computes it: a build's prefill form also in decode.

    Raises:
        BackendError: It cannot run here.
    """
    from dataclasses import replace

    from spikeexport.runners.ort_engine_runner import OrtEngineRunner
    from spikeexport.runners.subject import open_subject

    runner = open_subject(source.path)
    if isinstance(runner, OrtEngineRunner):
        runner.settings = replace(runner.settings, decode_rows=0)
    return runner


def build_notes(source: Source) -> tuple[str, ...]:
    """Returns what is special about a deployed ONNX Runtime build: one prompt at a time, one form for both phases."""
    from spikeexport.runners.engine_graphs import DECODE_NAME

    if source.kind != "onnxruntime" or source.manifest is None:
        return ()
    notes = []
    if source.manifest.target.get("cache") == "shared":
        notes.append(f"one prompt at a time; for batches deploy the .onnx that {source.path.name} came from")
    if (source.path / DECODE_NAME).is_file():
        notes.append(
            "decode runs W8A8 as prefill does, where `spikeexport generate` leaves inputs unquantised: without "
            "`build --decode weight-only` a folder's own text is the deployed one's"
        )
    return tuple(notes)


def open_source(subject: str | Path) -> Source:
    """Opens what `deploy` was given.

    Raises:
        UsageError: It is a MODEL, which has to be exported first.
        SpikeExportError: It is missing or damaged.
    """
    kind = subject_kind(subject)
    if kind == "model" and not Path(subject).exists():
        raise UsageError(f"{subject} does not exist: give what `spikeexport build` or `export` wrote.")
    if kind == "model":
        raise UsageError(
            f"{subject} is neither a built folder nor an .onnx: give what `spikeexport build` or `export` wrote."
        )
    return _open_onnx(Path(subject)) if kind == "onnx" else _open_built(built_folder(subject))


def write_onnx(source: Source, folder: Path) -> Signature:
    """Writes the model of an .onnx or an ONNX Runtime build as `model.onnx` with its data, in the usual signature.

    Of a build it is the prefill form with its head, for both phases: servers open one file, and the decode form needs
    a session of its own.

    Returns:
        Its inputs and outputs.

    Raises:
        OSError: The file system refused.
    """
    import onnx_ir as ir
    from spikeexport.backends.onnxruntime.backend import read_prefix_arrays
    from spikeexport.backends.signature import graph_signature
    from spikeexport.graphs.onnxruntime.join_head import join_head
    from spikeexport.graphs.onnxruntime.usual_signature import UsualSignature
    from spikeexport.runners.engine_graphs import HEAD_NAME

    built = source.kind == "onnxruntime"
    model = ir.load(source.path / MODEL_NAME if built else source.path)
    if built and (source.path / HEAD_NAME).is_file():
        join_head(model, ir.load(source.path / HEAD_NAME))
    UsualSignature(read_prefix_arrays(source.path) if built else {})(model)
    ir.save(model, folder / MODEL_NAME, external_data=f"{MODEL_NAME}.data")
    return graph_signature(model.graph)


def _open_onnx(path: Path) -> Source:
    from spikeexport.calibration.foundation.files import sha256_file
    from spikeexport.graphs.reading import read_portable
    from spikeexport.runners.onnx_runner import assets_folder

    portable = read_portable(path)
    prefix = portable.prefix
    assets = Assets(assets_folder(path), prefix.ids if prefix else ())
    plan = portable.plan
    return Source(path, "onnx", plan.model.name, assets, prefix, plan.digest(), sha256_file(path), None)


def _open_built(folder: Path) -> Source:
    manifest = load_manifest(folder)
    prefix = manifest.prefix
    return Source(
        path=folder,
        kind=manifest.backend,  # type: ignore[arg-type]
        model=manifest.model,
        assets=Assets(folder, prefix.ids if prefix else ()),
        prefix=prefix,
        plan_sha256=manifest.plan_sha256,
        onnx_sha256=manifest.onnx_sha256,
        manifest=manifest,
    )
