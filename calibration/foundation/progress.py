"""Progress and logs on stderr: shown on a terminal, quiet in a pipe, never on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

T = TypeVar("T")

_verbosity = 0


def set_verbosity(level: int) -> None:
    """Sets how much is said on stderr: -1 only errors, 0 stages, 1 details."""
    global _verbosity
    _verbosity = level


def stderr_console() -> Console:
    """Returns a console on the current stderr."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def say(message: str, *, level: int = 0) -> None:
    """Prints one line on stderr when the verbosity is at least `level`."""
    if _verbosity >= level:
        stderr_console().print(message, markup=False)


def warn(message: str) -> None:
    """Prints a warning on stderr, also when quiet."""
    stderr_console().print(f"warning: {message}", markup=False)


@contextlib.contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Yields `advance(steps=1, description=None)` for a bar on stderr; off when stderr is no terminal.

    Bars nest: an inner bar while an outer one is live is drawn below it.

    Args:
        description: What is being done, shown before the bar.
        total: Number of steps, or None when unknown (a spinner).
    """
    console = stderr_console()
    live = console.is_terminal and _verbosity >= 0 and not _Live.active
    if not live:
        say(f"{description}…")
        yield lambda steps=1, description=None: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(description, total=total)
        _Live.active = True
        try:
            yield lambda steps=1, description=None: bar.update(
                task, advance=steps, **({"description": description} if description else {})
            )
        finally:
            _Live.active = False


class _Live:
    """Whether a bar is being drawn: rich allows one live display at a time."""

    active = False


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterates over `items` with a progress bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
