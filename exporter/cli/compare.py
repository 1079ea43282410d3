"""`spikeexport compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Html, Seqlen, Text
from spikeexport.defaults import GENERATIONS, WINDOWS


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
    generations: Annotated[
        int, typer.Option("--generations", metavar="N", min=0, help="Windows whose beginnings both continue greedily.")
    ] = GENERATIONS,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise", help="Measure the noise floor: the candidate again, perturbed by one part in a million."
        ),
    ] = False,
    html: Html = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the report as Markdown.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Show this profile of the original in the report.")
    ] = None,
    engine: Annotated[
        list[Path] | None,
        typer.Option("--engine", metavar="DIR", help="Show what this built folder holds in the report. Repeatable."),
    ] = None,
    save_outputs: Annotated[
        Path | None,
        typer.Option(
            "--save-outputs",
            metavar="PATH",
            help="Save both sides' logits for `polygraphy run --load-outputs`: FILE.json, or a folder.",
        ),
    ] = None,
    save_inputs: Annotated[
        Path | None,
        typer.Option(
            "--save-inputs",
            metavar="FILE",
            help="Save the windows for `polygraphy run --load-inputs` (.onnx candidate).",
        ),
    ] = None,
    load_outputs: Annotated[
        Path | None,
        typer.Option(
            "--load-outputs",
            metavar="PATH",
            help="Take the candidate's logits from what Polygraphy saved, in place of running it.",
        ),
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
        generations=generations,
        noise=noise,
        html=html,
        markdown=markdown,
        profile=profile,
        engines=tuple(engine or ()),
        save_outputs=save_outputs,
        save_inputs=save_inputs,
        load_outputs=load_outputs,
        fail_above=thresholds,
    )
    data = result.to_json()
    return Answer(data, compare_table(data, html), failures=result.failures)
