"""What a command says on stdout: one JSON object with `--json`, else something to read."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Answer:
    """A command's result.

    Attributes:
        data: The object that `--json` prints: plain values, finite numbers.
        text: The same for people; None where nothing is left to say.
        failures: Thresholds of the user's that were not met, one line each; any of them makes the exit code 3.
    """

    data: Mapping[str, Any]
    text: RenderableType | None = None
    failures: Sequence[str] = field(default=())


class Stdout:
    """Stdout while a command runs: with `--json` it is kept clean for the one object at the end.

    Attributes:
        json: Whether `--json` was given.
        stream: The real stdout.
    """

    def __init__(self, json_wanted: bool) -> None:
        self.json = json_wanted
        self.stream: TextIO = sys.stdout

    def write(self, text: str) -> None:
        """Streams text to a reader at once; nothing with `--json`."""
        if not self.json:
            self.stream.write(text)
            self.stream.flush()

    def answer(self, answer: Answer) -> None:
        """Prints the answer in the form that was asked for."""
        if self.json:
            self.stream.write(json.dumps(answer.data, ensure_ascii=False, allow_nan=False) + "\n")
            self.stream.flush()
        elif answer.text is not None:
            Console(file=self.stream, highlight=False, soft_wrap=isinstance(answer.text, str)).print(answer.text)

    def error(self, message: str, exit_code: int) -> None:
        """With `--json`, prints the error as the object that a program waits for."""
        if self.json:
            self.answer(Answer({"error": message, "exit_code": exit_code}))


@contextlib.contextmanager
def reserved_stdout(json_wanted: bool) -> Iterator[Stdout]:
    """Yields the real stdout; with `--json` everything else that is printed meanwhile goes to stderr.

    Native libraries print to the file descriptor, so that one is turned as well where stdout is a real file.
    """
    stdout = Stdout(json_wanted)
    if not json_wanted:
        yield stdout
        return
    kept = _descriptor_copy(sys.stdout)
    if kept is not None:
        os.dup2(2, 1)
        stdout.stream = os.fdopen(kept, "w", encoding="utf-8")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield stdout
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            stdout.stream.close()


def _descriptor_copy(stream: TextIO) -> int | None:
    try:
        stream.flush()
        return os.dup(1) if stream.fileno() == 1 else None
    except (OSError, ValueError):
        return None
