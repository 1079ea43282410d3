"""`spikeexport eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from spikeexport.calibration.foundation.errors import UsageError
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
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="A,B",
            help="Tasks, groups or tags of lm-eval; spikes_paper is the five of the spike papers. "
            "Perplexity is then measured only with --text.",
            show_default=False,
        ),
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(
            "--tasks-dir",
            metavar="DIR",
            help="Own tasks (lm-eval YAML), and local data: DIR/piqa.jsonl is asked in place of piqa's data set.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Questions per task.  [default: all]")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", metavar="N", min=0, help="Examples per question.  [default: the task's own]"),
    ] = None,
    provider: Provider = ProviderName.cpu,
) -> Answer:
    """Measure perplexity on a text, or scores on tasks."""
    from spikeexport.cli.tables import eval_table
    from spikeexport.evaluate import evaluate

    names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    if not names and (tasks is not None or tasks_dir or limit or num_fewshot is not None):
        raise UsageError("--tasks-dir, --limit and --num-fewshot belong to --tasks: name tasks, as in --tasks piqa.")
    data = evaluate(
        subject,
        text,
        windows=windows,
        seqlen=seqlen,
        bos=not no_bos,
        tasks=names,
        tasks_dir=tasks_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        provider=provider.value,
    ).to_json()
    return Answer(data, eval_table(data))
