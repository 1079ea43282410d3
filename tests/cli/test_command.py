"""Exit codes, one-line errors and a clean stdout, tried on small commands of the test's own."""

import errno
import json
import subprocess
import sys

import pytest
import typer
from spikeexport.calibration.foundation.errors import CheckFailed, SpikeExportError, UsageError
from spikeexport.cli.answer import Answer, Stdout
from spikeexport.cli.command import command
from typer.testing import CliRunner


def call(run, *arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command(run))
    return CliRunner().invoke(app, list(arguments))


def raising(error):
    def run() -> Answer:
        """Fail."""
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SpikeExportError("the file\nis cut"), 1, "the file is cut"),
        (UsageError("these contradict"), 2, "these contradict"),
        (CheckFailed("coverage 0.5"), 3, "coverage 0.5"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x.onnx"), 1, "No space left on device (/data/x.onnx)"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(error, code, words):
    result = call(raising(error))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_verbose_shows_the_traceback_before_the_line():
    result = call(raising(SpikeExportError("bad")), "-v")
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: bad"


def test_json_of_an_error_is_one_object():
    result = call(raising(UsageError("these contradict")), "--json")
    assert json.loads(result.stdout) == {"error": "these contradict", "exit_code": 2}
    assert result.exit_code == 2


def test_a_bug_is_not_hidden():
    result = call(raising(ZeroDivisionError("x")))
    assert isinstance(result.exception, ZeroDivisionError)


def test_missed_thresholds_exit_3_after_the_answer():
    def run() -> Answer:
        """Answer."""
        return Answer({"kl": 2.0}, "fine", failures=("kl is 2, above 1", "other is 3, above 2"))

    result = call(run, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"kl": 2.0}
    assert result.stderr.splitlines() == ["check failed: kl is 2, above 1", "check failed: other is 3, above 2"]


def test_streamed_text_is_left_out_of_json():
    def run(out: Stdout, word: str = "x") -> Answer:
        """Stream."""
        out.write(word)
        return Answer({"word": word}, "")

    assert call(run, "--word", "abc").stdout == "abc\n"
    assert json.loads(call(run, "--word", "abc", "--json").stdout) == {"word": "abc"}


def test_usage_mistakes_exit_2():
    def run(count: int = 1) -> Answer:
        """Count."""
        return Answer({})

    assert call(run, "--count", "many").exit_code == 2
    assert call(run, "--nope").exit_code == 2


_NOISY = """
import os, typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.command import command

def run() -> Answer:
    '''Print from Python and from a native library.'''
    print("python noise")
    os.write(1, b"native noise\\n")
    return Answer({"clean": True}, "read me")

app = typer.Typer()
app.command()(command(run))
app()
"""


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_stdout_is_kept_clean_for_json(flags):
    done = subprocess.run(
        [sys.executable, "-c", _NOISY, *flags], capture_output=True, text=True, timeout=60, check=True
    )
    if flags:
        assert json.loads(done.stdout) == {"clean": True}
        assert "python noise" in done.stderr
        assert "native noise" in done.stderr
    else:
        assert "read me" in done.stdout


def test_a_closed_pipe_is_no_error():
    script = f"{sys.executable} -m spikeexport --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
