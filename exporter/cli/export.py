"""`spikeexport export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from spikeexport.calibration.defaults import MAX_EXCLUDED
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Calibration, CalibrationSeqlen, Model, Samples, calibration_sources


class ExcludedPrecision(str, Enum):
    """How an excluded linear is stored and computed."""

    fp16 = "fp16"
    w8a16 = "w8a16"
    fp8 = "fp8"
    bf16 = "bf16"
    fp32 = "fp32"


class Rounding(str, Enum):
    """How weights are rounded to INT8."""

    auto = "auto"
    nearest = "nearest"
    gptq = "gptq"


class Weights(str, Enum):
    """How the quantised linears' weights are stored."""

    int8 = "int8"
    fp = "fp"


class LmHead(str, Enum):
    """How the head's weight is stored."""

    fp = "fp"
    int8 = "int8"


class KvStorage(str, Enum):
    """How the KV cache is stored."""

    fp = "fp"
    int8 = "int8"


class Dtype(str, Enum):
    """Floating-point type of the graph."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


def run(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The .onnx to write.")],
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="A profile of this model, to save its pass.")
    ] = None,
    calibration: Calibration = None,
    samples: Samples = None,
    seqlen: CalibrationSeqlen = None,
    qfem: Annotated[
        str,
        typer.Option(
            "--qfem",
            metavar="auto|ALPHA|off|first-last:N|FILE",
            help="Leave linears with ratio >= ALPHA unquantised, the down projections of the first and last N layers, "
            "or those of a published list (.json).",
        ),
    ] = "auto",
    qfep: Annotated[
        str, typer.Option("--qfep", metavar="auto|off|TEXT|ids:1,2,3", help="Prefix whose KV cache is baked in.")
    ] = "auto",
    smooth: Annotated[
        str,
        typer.Option(
            "--smooth",
            metavar="auto[:A]|off|rotate[:A]|shift[:A]|folds[:A]|smoothquant[:A]|outliertune|swiglu",
            help="Fold per-channel ranges into the weights.",
        ),
    ] = "auto",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Leave these linears unquantised too. Repeatable."),
    ] = None,
    max_excluded: Annotated[
        float,
        typer.Option("--max-excluded", metavar="SHARE", help="Largest share of the weights that auto leaves out."),
    ] = MAX_EXCLUDED,
    excluded_precision: Annotated[
        ExcludedPrecision, typer.Option("--excluded-precision", help="How excluded linears are computed.")
    ] = ExcludedPrecision.w8a16,
    rounding: Annotated[
        Rounding, typer.Option("--rounding", help="gptq = error-compensated; auto = what measures better.")
    ] = Rounding.auto,
    scales: Annotated[
        str,
        typer.Option("--scales", metavar="auto|absmax|percentile[:P]|mse", help="How input scales are chosen."),
    ] = "auto",
    weights: Annotated[Weights, typer.Option("--weights", help="fp = no quantisation at all.")] = Weights.int8,
    lm_head: Annotated[LmHead, typer.Option("--lm-head", help="int8 = weight-only.")] = LmHead.fp,
    kv: Annotated[
        KvStorage | None,
        typer.Option(
            "--kv", help="int8 = past and present as INT8, static scales per head and channel.  [default: fp]"
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Floating-point type of the graph.")] = Dtype.fp16,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Take all decisions from a saved recipe.")
    ] = None,
    save_recipe: Annotated[
        Path | None, typer.Option("--save-recipe", metavar="FILE", help="Save the decisions to use them again.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and report, write no .onnx.")] = False,
) -> Answer:
    """Quantise with QFeM and QFeP and write one portable .onnx with Q/DQ."""
    from spikeexport.cli.tables import export_table
    from spikeexport.export import export

    result = export(
        model,
        output,
        profile=profile,
        calibration=calibration_sources(calibration),
        samples=samples,
        seqlen=seqlen,
        qfem=qfem,
        qfep=qfep,
        smooth=smooth,
        exclude=tuple(exclude or ()),
        max_excluded=max_excluded,
        excluded_precision=excluded_precision.value,
        rounding=rounding.value,
        scales=scales,
        weights=weights.value,
        lm_head=lm_head.value,
        kv=kv.value if kv is not None else None,
        dtype=dtype.value,
        recipe=recipe,
        save_recipe=save_recipe,
        dry_run=dry_run,
    )
    data = result.to_json()
    return Answer(data, export_table(data))
