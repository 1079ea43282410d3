"""Arguments and options that several commands share, so that each is described once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from spikeexport.defaults import SELF_TEXT, SEQLEN

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder, hub id or .gguf file.")]
Subject = Annotated[
    str,
    typer.Argument(
        metavar="SUBJECT",
        help="A MODEL, MODEL@RECIPE.json (fake-quantised), an .onnx of `export` or a folder of `build`.",
    ),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="TEXT",
        help="Calibration text: .txt/.raw, .jsonl, a dataset id, or self (sampled from the model). "
        "Repeatable: ranges are taken over all of them.  [default: self]",
        show_default=False,
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", min=1, help="Calibration samples.")]
CalibrationSeqlen = Annotated[int | None, typer.Option("--seqlen", metavar="L", min=2, help="Tokens per sample.")]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="TEXT",
        help="Text to judge on: .txt/.raw, .jsonl, a dataset id, or self.  [default: self]",
        show_default=False,
    ),
]
Seqlen = Annotated[
    int | None,
    typer.Option("--seqlen", metavar="L", min=2, help=f"Tokens per window.  [default: {SEQLEN}]", show_default=False),
]


class ProviderName(str, Enum):
    """Where ONNX Runtime runs an .onnx file."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    nvtensorrtrtx = "nvtensorrtrtx"


Provider = Annotated[
    ProviderName, typer.Option("--provider", help="Where ONNX Runtime runs an .onnx; an error where it cannot.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads.  [default: physical cores]", show_default=False),
]
Spinning = Annotated[
    bool, typer.Option("--spinning/--no-spinning", help="ONNX Runtime: idle threads wait actively; off saves power.")
]
Prepacking = Annotated[
    bool, typer.Option("--prepacking/--no-prepacking", help="ONNX Runtime: re-lay weights when loading.")
]
Chunk = Annotated[
    int | None,
    typer.Option("--chunk", metavar="N", min=1, help="ONNX Runtime builds: most prompt tokens of one step."),
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a report to read.")]


def calibration_sources(named: list[str] | None) -> tuple[str, ...]:
    """Returns the calibration texts that the user named, or the default."""
    return tuple(named) if named else (SELF_TEXT,)
