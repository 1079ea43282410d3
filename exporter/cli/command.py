"""What all commands share: --json, -q, -v, and errors as one line with the right exit code."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer
from spikeexport.calibration.foundation.errors import SpikeExportError, one_line
from spikeexport.cli.answer import Answer, Stdout, reserved_stdout

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", show_default=False)]
QuietFlag = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and warnings.", show_default=False)]
VerboseFlag = Annotated[bool, typer.Option("-v", "--verbose", help="Details; tracebacks.", show_default=False)]

_SHARED = {"json_output": JsonFlag, "quiet": QuietFlag, "verbose": VerboseFlag}

CHECK_FAILED = 3
"""Exit code when a threshold of the user's was not met."""

_INTERRUPTED = 1


def command(run: Callable[..., Answer]) -> Callable[..., None]:
    """Turns `run` into a typer command: adds the shared flags, prints its answer, reports its errors.

    A parameter of `run` that is annotated `Stdout` gets the stream for text that is shown as it comes.
    """
    hints = typing.get_type_hints(run, include_extras=True)
    stdout_name = next((name for name, hint in hints.items() if hint is Stdout), None)

    @functools.wraps(run)
    def wrapped(json_output: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
        _set_up_logging(quiet, verbose)
        with reserved_stdout(json_output) as stdout:
            if stdout_name is not None:
                arguments[stdout_name] = stdout
            code = _run(lambda: run(**arguments), stdout, verbose)
        if code:
            raise typer.Exit(code)

    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(run).parameters.items()
        if name != stdout_name
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [parameter.replace(kind=keyword) for parameter in own]
    shared = [inspect.Parameter(name, keyword, default=False, annotation=hint) for name, hint in _SHARED.items()]
    signature = inspect.Signature([*own, *shared])
    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    wrapped.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return wrapped


def _set_up_logging(quiet: bool, verbose: bool) -> None:
    from spikeexport.calibration.foundation.progress import set_verbosity

    set_verbosity(-1 if quiet else int(verbose))
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        # Read when the libraries that draw such bars are imported, which is later.
        os.environ.setdefault("TQDM_DISABLE", "1")


def _run(run: Callable[[], Answer], stdout: Stdout, verbose: bool) -> int:
    """Runs a command and returns its exit code."""
    try:
        answer = run()
        stdout.answer(answer)
    except BrokenPipeError:
        # The reader (`head`) has enough; a second write at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (SpikeExportError, OSError, MemoryError, KeyboardInterrupt) as error:
        return _report(error, stdout, verbose)
    for failure in answer.failures:
        print(f"check failed: {failure}", file=sys.stderr)
    return CHECK_FAILED if answer.failures else 0


def _report(error: BaseException, stdout: Stdout, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    message, code = _explain(error)
    print(f"error: {message}", file=sys.stderr)
    stdout.error(message, code)
    return code


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, SpikeExportError):
        return one_line(error, 2000), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was left under the outputs' names.", _INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or choose fewer or shorter samples.", 1
    assert isinstance(error, OSError)
    where = f" ({error.filename})" if error.filename else ""
    return f"{one_line(error.strerror or error)}{where}: check the path, its permissions and the free space.", 1
