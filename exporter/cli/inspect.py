"""`spikeexport inspect`."""

from __future__ import annotations

from typing import Annotated

import typer
from spikeexport.cli.answer import Answer


def run(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A profile, a recipe, an .onnx, a built or deployed folder.")
    ],
) -> Answer:
    """Show what a file holds and which linears run in INT8."""
    from spikeexport.cli.tables import inspect_table
    from spikeexport.inspect import inspect

    data = inspect(file)
    return Answer(data, inspect_table(data))
