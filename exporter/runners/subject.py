"""What a SUBJECT is: a MODEL, MODEL@RECIPE, an .onnx file that `export` wrote, or a folder that `build` wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from spikeexport.backends.manifest import MANIFEST_NAME, load_manifest
from spikeexport.calibration.foundation.errors import SpikeExportError, UsageError
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.ort_provider import CPU
from spikeexport.runners.ort_session import SessionSettings

SubjectKind = Literal["model", "fakequant", "onnx", "built"]


def subject_kind(subject: str | Path) -> SubjectKind:
    """Tells what `subject` names, from its form and the files there.

    Raises:
        SpikeExportError: It looks like an .onnx file or a recipe, which is not there.
    """
    path = Path(subject)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise SpikeExportError(f"{path} does not exist: check the path, or write it with `spikeexport export`.")
        return "onnx"
    if path.name == MANIFEST_NAME or (path / MANIFEST_NAME).is_file():
        return "built"
    return "fakequant" if fakequant_parts(subject) else "model"


def fakequant_parts(subject: str | Path) -> tuple[str, Path] | None:
    """Splits MODEL@RECIPE.json, the model computed with a recipe's INT8 numbers; None for anything else."""
    model, at, recipe = str(subject).rpartition("@")
    if not at or not model or not recipe.endswith(".json"):
        return None
    if not Path(recipe).is_file():
        raise SpikeExportError(f"{recipe} does not exist: save one with `spikeexport export --save-recipe`.")
    return model, Path(recipe)


def built_folder(subject: str | Path) -> Path:
    """Returns the folder of a built subject that was named by itself or by its engine.json."""
    path = Path(subject)
    return path.parent if path.name == MANIFEST_NAME else path


def open_subject(subject: str | Path, *, provider: str = CPU, **options: Any) -> CausalRunner:
    """Opens any SUBJECT as a runner.

    Args:
        subject: A MODEL (folder, hub id, .gguf), MODEL@RECIPE, an .onnx file or a built folder.
        provider: Where ONNX Runtime runs an .onnx file; other subjects have their own place.
        **options: Passed on to the runner of that kind.

    Raises:
        UsageError: A provider for something else than an .onnx file.
        SpikeExportError: The subject is missing or damaged, or cannot run on this machine; the message says why.
    """
    kind = subject_kind(subject)
    if provider != CPU:
        if kind != "onnx":
            raise UsageError(f"--provider {provider} belongs to an .onnx that `export` wrote, {subject} is none.")
        options["settings"] = replace(options.get("settings") or SessionSettings(), provider=provider)
    if kind == "onnx":
        from spikeexport.runners.onnx_runner import open_onnx_runner

        return open_onnx_runner(Path(subject), **options)
    if kind == "built":
        from spikeexport.backends.registry import open_backend

        folder = built_folder(subject)
        return open_backend(load_manifest(folder).backend).runner(folder, **options)
    parts = fakequant_parts(subject)
    if parts is not None:
        from spikeexport.runners.fakequant_runner import open_fakequant_runner

        return open_fakequant_runner(*parts, **options)
    from spikeexport.runners.torch_runner import open_torch_runner

    return open_torch_runner(str(subject), **options)
