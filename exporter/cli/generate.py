"""`spikeexport generate`."""

from __future__ import annotations

from typing import Annotated

import typer
from spikeexport.cli.answer import Answer, Stdout
from spikeexport.cli.parameters import (
    Chunk,
    Prepacking,
    Provider,
    ProviderName,
    Spinning,
    Subject,
    Threads,
)
from spikeexport.defaults import MAX_NEW_TOKENS


def run(
    stdout: Stdout,
    subject: Subject,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Most tokens to generate.")
    ] = MAX_NEW_TOKENS,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 takes the best token, more samples.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", min=1, help="Sample among the K likeliest tokens only.")
    ] = None,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="P", help="Sample among the likeliest tokens of this probability only.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End where this text comes. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the sampling.")] = 0,
    provider: Provider = ProviderName.cpu,
    threads: Threads = None,
    spinning: Spinning = True,
    prepacking: Prepacking = True,
    chunk: Chunk = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take the prompt as a chat message.")] = False,
) -> Answer:
    """Continue a prompt, streaming the text."""
    from spikeexport.generate import generate
    from spikeexport.runners.run_options import RunOptions, open_configured

    if not chat:
        stdout.write(prompt)
    with open_configured(subject, RunOptions(threads, spinning, prepacking, chunk), provider.value) as runner:
        result = generate(
            runner,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=tuple(stop or ()),
            seed=seed,
            chat=chat,
            on_text=stdout.write,
        )
    return Answer(result.to_json(), "")
