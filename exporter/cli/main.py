"""The `spikeexport` program."""

from __future__ import annotations

import importlib
import signal
from typing import Annotated

import typer
from spikeexport.cli.command import command

COMMANDS: dict[str, str] = {
    "profile": "spikeexport.cli.profile",
    "export": "spikeexport.cli.export",
    "build": "spikeexport.cli.build",
    "inspect": "spikeexport.cli.inspect",
    "compare": "spikeexport.cli.compare",
    "eval": "spikeexport.cli.eval",
    "generate": "spikeexport.cli.generate",
    "bench": "spikeexport.cli.bench",
    "deploy": "spikeexport.cli.deploy",
    "doctor": "spikeexport.cli.doctor",
}
"""Every command and the module whose `run` it is; those modules import nothing heavy before they run."""

app = typer.Typer(
    name="spikeexport",
    help="From a GLU-based language model on Hugging Face to an INT8 engine that is fast and still right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"spikeexport {version('spikeexport')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _name, _module in COMMANDS.items():
    app.command(_name)(command(importlib.import_module(_module).run))


def main() -> None:
    """Runs the command line and exits with 0, 1, 2 or 3."""
    # A polite kill ends like Ctrl-C: outputs that are not whole are removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="spikeexport")
