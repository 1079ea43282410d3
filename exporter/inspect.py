"""`spikeexport inspect`: what a profile, a recipe, an .onnx or a built folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.backends.manifest import MANIFEST_NAME, EngineManifest, load_manifest
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.records import read_json
from spikeexport.calibration.records.plan import Plan, Prefix
from spikeexport.calibration.records.profile import Profile
from spikeexport.deploy.deploy import RECORD_NAME, Deployment, describe_deployment
from spikeexport.kv_decision import storage_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from spikeexport.graphs.reading import PortableModel


def inspect(file: str | Path) -> dict[str, Any]:
    """Describes a file as plain values; `kind` says what it is.

    Args:
        file: A profile.json, a recipe, an .onnx, a built or deployed folder, or its record.

    Raises:
        SpikeExportError: The file is missing, damaged or none of these.
    """
    path = Path(file)
    if (path / RECORD_NAME).is_file() or path.name == RECORD_NAME:
        record = path if path.name == RECORD_NAME else path / RECORD_NAME
        return {**describe_deployment(Deployment.load(record)), "path": str(record.parent)}
    if path.is_dir() or path.name == MANIFEST_NAME:
        folder = path if path.is_dir() else path.parent
        if not (folder / MANIFEST_NAME).is_file():
            raise SpikeExportError(
                f"{folder} is no built folder (it has no {MANIFEST_NAME}): give a profile, an .onnx or what "
                "`build` wrote."
            )
        return {**describe_engine(load_manifest(folder)), "path": str(folder)}
    if path.suffix == ".onnx":
        from spikeexport.graphs.passes.stamp_metadata import PLAN_KEY
        from spikeexport.graphs.reading import read_model, read_portable

        model = read_model(path)
        return describe_onnx(read_portable(path)) if PLAN_KEY in model.metadata_props else describe_foreign(model, path)
    return _describe_json(path)


def describe_engine(manifest: EngineManifest) -> dict[str, Any]:
    """Returns the keys of a built engine: what was planned, what was really compiled, where it came from."""
    truth = manifest.truth
    return {
        "kind": "engine",
        "backend": manifest.backend,
        "model": manifest.model,
        "linears": manifest.linears,
        "planned": len(truth.planned),
        "int8": truth.int8,
        "int8_coverage": truth.int8_coverage,
        "fallbacks": [fallback.model_dump() for fallback in truth.fallbacks],
        "excluded": list(manifest.excluded),
        "merged": {product: list(linears) for product, linears in truth.merged.items()},
        "attention_fused": truth.attention_fused,
        "attention_layers": truth.attention_layers,
        "attention_unfused": list(truth.attention_unfused),
        "attention_why": truth.attention_why,
        "leftovers": {kind: leftover.model_dump() for kind, leftover in truth.leftovers.items()},
        "kernels": truth.kernels,
        "prefix": _prefix(manifest.prefix),
        "size_bytes": manifest.size_bytes,
        "files": {file.name: file.size_bytes for file in manifest.files},
        "target": manifest.target,
        "versions": manifest.versions,
        "signature": manifest.signature.model_dump(mode="json") if manifest.signature else None,
        "plan_sha256": manifest.plan_sha256,
        "onnx_sha256": manifest.onnx_sha256,
    }


def describe_onnx(portable: PortableModel) -> dict[str, Any]:
    """Returns the keys of an exported .onnx; which linears are quantised is read from its graph."""
    from spikeexport.graphs.passes.stamp_metadata import VERSIONS_KEY
    from spikeexport.graphs.tensorrt.lint import lint
    from spikeexport.graphs.tensorrt.roles import quantized_linears

    plan, model = portable.plan, portable.model
    quantized = quantized_linears(model)
    found = lint(model, plan.quantized_linears if plan else None)
    return {
        "kind": "onnx",
        "path": str(portable.path),
        "model": plan.model.name if plan else None,
        "linears": len(portable.linears),
        "quantized": len(quantized),
        "excluded": list(plan.excluded_linears) if plan else [],
        "excluded_why": {item.linear: f"{item.precision}: {item.why}" for item in plan.excluded} if plan else {},
        "alpha": plan.alpha if plan else None,
        "prefix": _prefix(portable.prefix),
        "kv": storage_of(plan) if plan else None,
        "opset": model.opset_imports.get(""),
        "nodes": len(model.graph),
        "size_bytes": _onnx_bytes(model, portable.path),
        "decisions": dict(plan.decisions) if plan else {},
        "trade_off": [row.model_dump(mode="json") for row in plan.trade_off] if plan else [],
        "plan_sha256": plan.digest() if plan else None,
        "versions": json.loads(model.metadata_props.get(VERSIONS_KEY, "{}")),
        "findings": [{**asdict(finding), "modules": list(finding.modules)} for finding in found],
    }


def describe_foreign(model: ir.Model, path: Path) -> dict[str, Any]:
    """Returns what can be said about an .onnx of another exporter: its linears by node and the lint's findings.

    Raises:
        GraphError: Its external data is missing or cut.
    """
    from spikeexport.graphs.reading import check_external_data
    from spikeexport.graphs.tensorrt.foreign import name_linears_by_node
    from spikeexport.graphs.tensorrt.lint import lint
    from spikeexport.graphs.tensorrt.roles import quantized_linears

    check_external_data(model, path)
    linears = name_linears_by_node(model)
    found = lint(model)
    return {
        "kind": "onnx",
        "path": str(path),
        "model": None,
        "written_by": f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip(),
        "linears": len(linears),
        "quantized": len(quantized_linears(model)),
        "opset": model.opset_imports.get(""),
        "nodes": len(model.graph),
        "size_bytes": _onnx_bytes(model, path),
        "findings": [{**asdict(finding), "modules": list(finding.modules)} for finding in found],
    }


def _onnx_bytes(model: ir.Model, path: Path) -> int:
    import onnx_ir as ir

    tensors = (value.const_value for value in model.graph.initializers.values())
    beside = {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    files = [path, *(path.parent / name for name in beside)]
    return sum(file.stat().st_size for file in files)


def _describe_json(path: Path) -> dict[str, Any]:
    data = read_json(path)
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == Profile.KIND:
        return Profile.from_dict(data, str(path)).model_dump(mode="json")
    if kind == Plan.KIND:
        return _describe_plan(Plan.from_dict(data, str(path)))
    raise SpikeExportError(
        f"{path} is nothing that spikeexport wrote (kind: found {kind!r}): give a profile, a recipe, an .onnx or what "
        "`build` wrote."
    )


def _describe_plan(plan: Plan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "model": plan.model.name,
        "linears": len(plan.quantized_linears) + len(plan.excluded),
        "quantized": len(plan.quantized_linears),
        "excluded": list(plan.excluded_linears),
        "alpha": plan.alpha,
        "prefix": _prefix(plan.prefix),
        "folds": len(plan.folds),
        "decisions": dict(plan.decisions),
        "plan_sha256": plan.digest(),
    }


def _prefix(prefix: Prefix | None) -> dict[str, Any] | None:
    return prefix.model_dump(mode="json") if prefix is not None else None
