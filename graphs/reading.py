"""Reading a portable .onnx back: its graph, its plan and its prefix, with the external data checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError, one_line
from spikeexport.calibration.records.plan import Plan, Prefix
from spikeexport.graphs.passes.stamp_metadata import LINEARS_KEY, PLAN_KEY


@dataclass(frozen=True)
class PortableModel:
    """A .onnx file that `export` wrote.

    Attributes:
        model: The graph; weights stay in the mapped data file.
        plan: What was decided for it.
        linears: Module paths of all decoder linears, quantised or not.
        prefix: The baked prefix, or None.
        path: The file.
    """

    model: ir.Model
    plan: Plan
    linears: tuple[str, ...]
    prefix: Prefix | None
    path: Path


def read_portable(path: str | Path) -> PortableModel:
    """Reads a file that `export` wrote; weights are not loaded.

    Raises:
        GraphError: The file is missing, is no ONNX file, was not written by `export`, or its external data is missing
            or shorter than the graph says.
        PlanError: The plan in its metadata is malformed.
    """
    path = Path(path)
    model = read_model(path)
    text = model.metadata_props.get(PLAN_KEY)
    if text is None or LINEARS_KEY not in model.metadata_props:
        raise GraphError(
            f"{path} was not written by spikeexport (its metadata has no {PLAN_KEY}): give a file from "
            "`spikeexport export`."
        )
    check_external_data(model, path)
    plan = Plan.from_dict(_json(text, path), f"{path} ({PLAN_KEY})")
    linears = tuple(str(name) for name in _json(model.metadata_props[LINEARS_KEY], path))
    return PortableModel(model, plan, linears, plan.prefix, path)


def check_external_data(model: ir.Model, path: Path) -> None:
    """Checks that each tensor outside the file lies whole in its data file.

    Args:
        model: A model loaded from `path`.
        path: The .onnx file, used in messages; data files are looked for beside it.

    Raises:
        GraphError: A data file is missing, too short or outside the folder.
    """
    needed: dict[str, tuple[int, str]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            location = str(tensor.location)
            needed[location] = max(needed.get(location, (0, "")), (end, name))
    for location, (end, name) in needed.items():
        if PurePath(location).is_absolute() or ".." in PurePath(location).parts:
            raise GraphError(f"{path} keeps {name} in {location}, outside its own folder: the file is not trusted.")
        _check_data_file(path, path.parent / location, end, name)


def _check_data_file(path: Path, data: Path, end: int, name: str) -> None:
    if not data.is_file():
        raise GraphError(f"{data} is missing: {path.name} keeps its weights there; copy it beside it or export again.")
    size = data.stat().st_size
    if size < end:
        raise GraphError(
            f"{data} is cut: it has {size} bytes, {path.name} expects {end} ({name} ends there); copy it again or "
            "export again."
        )


def read_model(path: Path) -> ir.Model:
    """Reads any .onnx file; weights are not loaded.

    Raises:
        GraphError: The file is missing or is no ONNX file.
    """
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise GraphError(f"{path} does not exist: check the path.")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError, OSError) as error:
        raise GraphError(
            f"{path} is no readable ONNX file ({one_line(error, 160) or type(error).__name__}): it is damaged or of "
            "another kind; export again."
        ) from error
    if not len(model.graph):
        raise GraphError(f"{path} is no readable ONNX file (it holds no nodes): it is damaged; export again.")
    return model


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise GraphError(
            f"{path}: the metadata of spikeexport is not valid JSON ({error.msg}): export again."
        ) from error
