"""`spikeexport bench`."""

from __future__ import annotations

from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Subject
from spikeexport.defaults import BENCH_DECODE, BENCH_PREFILL


def run(
    subject: Subject,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="SUBJECT", help="Measure this one too, interleaved. Repeatable."),
    ] = None,
    prefill: Annotated[int, typer.Option("--prefill", metavar="N", min=1, help="Prompt tokens.")] = BENCH_PREFILL,
    decode: Annotated[int, typer.Option("--decode", metavar="N", min=1, help="Tokens to decode.")] = BENCH_DECODE,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Sequences side by side.")] = 1,
) -> Answer:
    """Measure prefill and decode speed, size and memory."""
    from spikeexport.bench import bench
    from spikeexport.cli.machine_tables import bench_table

    data = bench(subject, against=tuple(against or ()), prefill=prefill, decode=decode, batch=batch).to_json()
    return Answer(data, bench_table(data))
