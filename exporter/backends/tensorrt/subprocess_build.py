"""Starts the building subprocess, shows its progress, and turns whatever ends it into an answer or an error."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from spikeexport.backends.tensorrt.flavor import FLAVORS
from spikeexport.backends.tensorrt.probe import describe_exit
from spikeexport.backends.tensorrt.request import RESULT_NAME, BuildAnswer, BuildRequest
from spikeexport.calibration.foundation import errors
from spikeexport.calibration.foundation.errors import BackendError, SpikeExportError, one_line
from spikeexport.calibration.foundation.progress import progress_bar

_WORKER = "spikeexport.backends.tensorrt.worker"
_SHOWN_STDERR = 400


def build_in_subprocess(request: BuildRequest) -> BuildAnswer:
    """Builds an engine in a process of its own.

    Raises:
        SpikeExportError: What the subprocess raised, under the same class.
        BackendError: The subprocess crashed; the message says how and its last words.
    """
    title = FLAVORS[request.backend].title
    with tempfile.TemporaryDirectory(prefix="spikeexport-build-") as private:
        path = Path(private) / "request.json"
        request.save(path)
        returncode, last_words = _run([sys.executable, "-m", _WORKER, str(path)], title, Path(private))
        result = path.with_name(RESULT_NAME)
        if returncode != 0 or not result.exists():
            raise BackendError(
                f"{title} {describe_exit(returncode)} while building {Path(request.onnx).name}; its last words: "
                f"{last_words or 'none'}."
            )
        answer = BuildAnswer.load(result)
    if answer.error is not None:
        kind = getattr(errors, answer.error_type, BackendError)
        assert issubclass(kind, SpikeExportError), "the worker reports errors by their class"
        raise kind(answer.error)
    return answer


def _run(command: list[str], title: str, private: Path) -> tuple[int, str]:
    """Runs the worker; every line that it prints is a phase for the progress display."""
    log = private / "stderr.txt"
    with (
        open(log, "wb") as stderr,
        progress_bar(f"Building with {title}") as advance,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None, "stdout is piped"
        try:
            for line in process.stdout:
                advance(0, description=f"Building with {title}: {line.strip()}")
        except BaseException:
            process.kill()
            raise
        returncode = process.wait()
    return returncode, one_line(log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_STDERR:], _SHOWN_STDERR)
