"""Writes the plan and where the file came from into the model's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata

import onnx_ir as ir
from spikeexport.calibration.records.plan import Plan

PLAN_KEY = "spikeexport.plan"
PREFIX_KEY = "spikeexport.prefix"
CALIBRATION_KEY = "spikeexport.calibration_sha256"
VERSIONS_KEY = "spikeexport.versions"
MODEL_KEY = "spikeexport.model"
LINEARS_KEY = "spikeexport.linears"

_PACKAGES = ("spikeexport", "mobius-onnx", "onnx-ir", "onnx", "torch", "transformers")


class StampMetadata(ir.passes.InPlacePass):
    """Sets metadata_props so that the plan can be restored from the file alone."""

    def __init__(self, plan: Plan, linears: Sequence[str]) -> None:
        """Takes the plan and the module paths of all decoder linears."""
        self._plan = plan
        self._linears = linears

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes `model.metadata_props` and its producer in place."""
        plan = self._plan
        stamped = {
            PLAN_KEY: _compact(plan.model_dump(mode="json")),
            PREFIX_KEY: _compact(plan.prefix.model_dump(mode="json") if plan.prefix else None),
            CALIBRATION_KEY: plan.calibration.sha256 if plan.calibration else "",
            VERSIONS_KEY: _compact({name: metadata.version(name) for name in _PACKAGES}),
            MODEL_KEY: _compact(plan.model.model_dump(mode="json")),
            LINEARS_KEY: _compact(list(self._linears)),
        }
        modified = any(model.metadata_props.get(key) != text for key, text in stamped.items())
        model.metadata_props.update(stamped)
        model.producer_name, model.producer_version = "spikeexport", metadata.version("spikeexport")
        return ir.passes.PassResult(model, modified=modified)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
