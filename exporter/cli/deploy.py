"""`spikeexport deploy`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from spikeexport.cli.answer import Answer


class Layout(str, Enum):
    """What is to load the folder."""

    genai = "genai"
    triton = "triton"


class GenaiProvider(str, Enum):
    """Where onnxruntime-genai runs an .onnx."""

    cpu = "cpu"
    cuda = "cuda"
    nvtensorrtrtx = "nvtensorrtrtx"


def run(
    built: Annotated[
        str, typer.Argument(metavar="BUILT", help="A folder that `build` wrote, or an .onnx that `export` wrote.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")],
    layout: Annotated[
        Layout, typer.Option("--layout", help="genai = onnxruntime-genai, triton = Triton's model repository.")
    ],
    provider: Annotated[
        GenaiProvider, typer.Option("--provider", help="Where onnxruntime-genai runs an .onnx.")
    ] = GenaiProvider.cpu,
) -> Answer:
    """Write the folder that a server loads, and say how to start the server."""
    from spikeexport.cli.tables import deployed_table
    from spikeexport.deploy.deploy import deploy

    data = deploy(built, output, layout=layout.value, provider=provider.value).to_json()
    return Answer(data, deployed_table(data))
