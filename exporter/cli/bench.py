"""`spikeexport bench`."""

from __future__ import annotations

from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Chunk, Prepacking, Spinning, Subject, Threads
from spikeexport.defaults import BENCH_DECODE, BENCH_PREFILL, BENCH_ROUNDS


def run(
    subject: Subject,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="SUBJECT",
            help="Measure this too, interleaved: a SUBJECT, llama.cpp:FILE.gguf or genai:FOLDER. Repeatable.",
        ),
    ] = None,
    prefill: Annotated[int, typer.Option("--prefill", metavar="N", min=1, help="Prompt tokens.")] = BENCH_PREFILL,
    decode: Annotated[int, typer.Option("--decode", metavar="N", min=1, help="Tokens to decode.")] = BENCH_DECODE,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Sequences side by side.")] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Measured rounds; one more warms up.")
    ] = BENCH_ROUNDS,
    threads: Threads = None,
    spinning: Spinning = True,
    prepacking: Prepacking = True,
    chunk: Chunk = None,
) -> Answer:
    """Measure prefill and decode speed, size and memory."""
    from spikeexport.bench import bench
    from spikeexport.cli.machine_tables import bench_table
    from spikeexport.runners.run_options import RunOptions

    data = bench(
        subject,
        against=tuple(against or ()),
        prefill=prefill,
        decode=decode,
        batch=batch,
        rounds=rounds,
        options=RunOptions(threads, spinning, prepacking, chunk),
    ).to_json()
    return Answer(data, bench_table(data))
