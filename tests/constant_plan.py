"""Portable files for tests of compilers: real graphs of tiny models, with one made-up scale at every input.

What a compiler makes of a graph doesn't depend on the scales' values; tests of numbers need a calibrated plan.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import onnx_ir as ir
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.records.plan import ExcludedPrecision, Exclusion, InputSite, Plan, Prefix
from spikeexport.graphs.passes.linears import decoder_matmuls
from spikeexport.graphs.portable import Dtype, build_unquantised, quantise
from spikeexport.graphs.saving import save_model

SCALE = 0.05


def constant_plan(
    model: ir.Model,
    checkpoint,
    *,
    excluded: tuple[str, ...] = (),
    excluded_precision: ExcludedPrecision = "w8a16",
    prefix: Prefix | None = None,
) -> Plan:
    """Plans every linear of an unquantised graph with the same scale, `excluded` ones apart."""
    readers: dict[str, list[str]] = defaultdict(list)
    for module, node in decoder_matmuls(model.graph).items():
        if module not in excluded:
            readers[str(node.inputs[0].name)].append(module)
    return Plan(
        model=checkpoint.model_id,
        calibration=None,
        prefix=prefix,
        folds=(),
        sites=tuple(InputSite(name=names[0], linears=tuple(names), scale=SCALE) for names in readers.values()),
        excluded=tuple(
            Exclusion(linear=name, precision=excluded_precision, why="chosen by the test") for name in excluded
        ),
        alpha=None,
        weights="int8",
        decisions={},
    )


def _empty_plan(checkpoint) -> Plan:
    return Plan(
        model=checkpoint.model_id,
        calibration=None,
        prefix=None,
        folds=(),
        sites=(),
        excluded=(),
        alpha=None,
        weights="fp",
        decisions={},
    )


def portable_graph(folder: Path, *, dtype: Dtype = "fp16", quantised: bool = True, **choices):
    """Builds the portable graph of the model in `folder`; choices as for `constant_plan`."""
    checkpoint = open_checkpoint(folder)
    nothing = _empty_plan(checkpoint)
    model = build_unquantised(checkpoint, nothing, {}, (), dtype)
    plan = constant_plan(model, checkpoint, **choices) if quantised else nothing
    return quantise(model, plan)


def write_portable(folder: Path, path: Path, **options) -> Path:
    """Writes the portable file of the model in `folder` as `path`; options as for `portable_graph`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(portable_graph(folder, **options), path)
    return path
