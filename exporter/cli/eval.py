"""`spikeexport eval`."""

from __future__ import annotations

from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Provider, ProviderName, Seqlen, Subject, Text


def run(
    subject: Subject,
    text: Text = None,
    windows: Annotated[
        int | None,
        typer.Option("--windows", metavar="N", min=1, help="Windows, evenly spaced.  [default: all of the text]"),
    ] = None,
    seqlen: Seqlen = None,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Put no BOS in front of the windows.")] = False,
    provider: Provider = ProviderName.cpu,
) -> Answer:
    """Measure perplexity on a text."""
    from spikeexport.cli.tables import eval_table
    from spikeexport.evaluate import evaluate

    result = evaluate(subject, text, windows=windows, seqlen=seqlen, bos=not no_bos, provider=provider.value)
    data = result.to_json()
    return Answer(data, eval_table(data))
