"""`spikeexport compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Html, Seqlen, Text
from spikeexport.defaults import WINDOWS


def run(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="The SUBJECT to judge.")],
    reference: Annotated[
        str, typer.Option("--reference", metavar="SUBJECT", help="What it should be equal to, usually the MODEL.")
    ],
    text: Text = None,
    windows: Annotated[int, typer.Option("--windows", metavar="N", min=1, help="Windows, evenly spaced.")] = WINDOWS,
    seqlen: Seqlen = None,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Also compare every linear and block (.onnx with a MODEL).")
    ] = True,
    html: Html = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Show this profile of the original in the report.")
    ] = None,
    engine: Annotated[
        list[Path] | None,
        typer.Option("--engine", metavar="DIR", help="Show what this built folder holds in the report. Repeatable."),
    ] = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-above",
            metavar="METRIC=VALUE",
            help="Exit with 3 when METRIC is above VALUE, such as perplexity_ratio=1.02 or kl=0.05. Repeatable.",
        ),
    ] = None,
) -> Answer:
    """Compare two subjects on a text: agreement, KL divergence, perplexity, error by layer."""
    from spikeexport.cli.tables import compare_table
    from spikeexport.compare.compare import compare
    from spikeexport.compare.thresholds import parse_thresholds

    thresholds = parse_thresholds(fail_above or ())
    result = compare(
        candidate,
        reference,
        text,
        windows=windows,
        seqlen=seqlen,
        layers=layers,
        html=html,
        profile=profile,
        engines=tuple(engine or ()),
        fail_above=thresholds,
    )
    data = result.to_json()
    return Answer(data, compare_table(data, html), failures=result.failures)
