"""`spikeexport deploy`: from a built folder or an .onnx to the folder that a server loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from spikeexport.backends.manifest import BuiltFile, list_files
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.foundation.files import staged_outputs
from spikeexport.calibration.foundation.records import Artifact
from spikeexport.calibration.records.plan import Prefix
from spikeexport.deploy.source import Source, build_notes, open_source

LAYOUTS = ("genai", "triton")
RECORD_NAME = "deployment.json"
"""File in every deployed folder that says where it came from."""


class Deployment(Artifact):
    """What a deployed folder holds and where it came from.

    Attributes:
        layout: One of `LAYOUTS`.
        source: "onnx", or the backend that built it.
        model: What the user called the checkpoint.
        prefix: The baked prefix.
        plan_sha256: Digest of the plan.
        onnx_sha256: SHA-256 of the portable .onnx.
        files: The folder's files.
        start: Commands that run or serve it.
        notes: What to know before that.
        checked: Tokens that the server's library generated and that were found equal to this project's runner's;
            0 = it is not installed here.
        versions: Tool versions, the build's included.
    """

    KIND: ClassVar[str] = "deployment"

    layout: str
    source: str
    model: str
    prefix: Prefix | None
    plan_sha256: str | None
    onnx_sha256: str
    files: tuple[BuiltFile, ...]
    start: tuple[str, ...]
    notes: tuple[str, ...]
    checked: int
    versions: dict[str, str]


@dataclass(frozen=True)
class DeployResult:
    """What `deploy` wrote.

    Attributes:
        path: The folder.
        deployment: Its record.
    """

    path: Path
    deployment: Deployment

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `deploy --json` prints."""
        return {"path": str(self.path), **describe_deployment(self.deployment)}


def deploy(built: str | Path, output: str | Path, *, layout: str, provider: str = "cpu") -> DeployResult:
    """Writes a folder that a server loads.

    Args:
        built: What `build` wrote, or an .onnx that `export` wrote.
        output: The folder to write; an earlier deployment there is replaced.
        layout: "genai" for onnxruntime-genai, "triton" for a model repository of Triton Inference Server.
        provider: Where onnxruntime-genai runs an .onnx: "cpu", "cuda" or "nvtensorrtrtx".

    Raises:
        UsageError: The layout does not serve what was built, or the output exists and is no deployment.
        BackendError: The server's library generates other text than this project's runner.
        SpikeExportError: The source is missing or damaged, or the file system refused.
    """
    target = Path(output)
    _require_known(layout, provider)
    if target.exists() and not (target / RECORD_NAME).is_file():
        raise UsageError(f"{target} exists and is no deployment: choose another folder with -o.")
    source = open_source(built)
    with staged_outputs(target) as staging:
        folder = staging / target.name
        start, notes, checked = _write(source, folder, layout, provider)
        commands = tuple(command.replace("{folder}", str(target.resolve())) for command in start)
        record = _record(source, folder, layout, commands, notes, checked)
        (folder / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    return DeployResult(target, record)


def describe_deployment(record: Deployment) -> dict[str, Any]:
    """Returns the keys of a deployed folder."""
    files = {file.name: file.size_bytes for file in record.files}
    return {**record.model_dump(mode="json"), "files": files, "size_bytes": sum(files.values())}


def _require_known(layout: str, provider: str) -> None:
    from spikeexport.deploy.genai import PROVIDERS

    if layout not in LAYOUTS:
        raise UsageError(f"Unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    if provider not in PROVIDERS:
        raise UsageError(f"Unknown provider {provider!r}: choose one of {', '.join(PROVIDERS)}.")
    if layout == "triton" and provider != "cpu":
        raise UsageError("--provider belongs to --layout genai: Triton's config.pbtxt says where a model runs.")


def _write(source: Source, folder: Path, layout: str, provider: str) -> tuple[Sequence[str], tuple[str, ...], int]:
    if layout == "triton":
        from spikeexport.deploy.triton import notes, write_triton

        return write_triton(source, folder), (*notes(source), *build_notes(source)), 0
    from spikeexport.deploy.genai import BOS_NOTE, PROVIDER_NOTE, write_genai
    from spikeexport.deploy.genai_check import check_genai

    start = write_genai(source, folder, provider)
    if provider != "cpu":
        return start, (BOS_NOTE, PROVIDER_NOTE), 0
    return start, (BOS_NOTE, *build_notes(source)), check_genai(source, folder)


def _record(
    source: Source, folder: Path, layout: str, start: tuple[str, ...], notes: tuple[str, ...], checked: int
) -> Deployment:
    built_with = source.manifest.versions if source.manifest is not None else {}
    return Deployment(
        layout=layout,
        source=source.kind,
        model=source.model,
        prefix=source.prefix,
        plan_sha256=source.plan_sha256,
        onnx_sha256=source.onnx_sha256,
        files=list_files(folder),
        start=start,
        notes=notes,
        checked=checked,
        versions={**built_with, "spikeexport": version("spikeexport")},
    )
