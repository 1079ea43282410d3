"""First contact with a native library, in a subprocess: what it can do here, or how it broke."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

from spikeexport.backends.tensorrt.flavor import FLAVORS, Flavor, load_module
from spikeexport.calibration.foundation.errors import BackendError, one_line

_TIMEOUT_S = 120
_STEPS = ("import", "builder", "runtime")


@dataclass(frozen=True)
class Probe:
    """What a library did when it was tried.

    Attributes:
        version: Its version, or None when the import failed.
        done: The steps that worked, out of "import", "builder" and "runtime".
        why: What went wrong at the next step, or None.
    """

    version: str | None
    done: tuple[str, ...]
    why: str | None

    @property
    def can_build(self) -> bool:
        """Whether a builder could be created."""
        return "builder" in self.done


def probe(flavor: Flavor) -> Probe:
    """Imports a library and creates its builder and runtime in a subprocess."""
    command = [sys.executable, "-m", __name__, flavor.backend]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Probe(None, (), f"{flavor.title} did not answer within {_TIMEOUT_S} s.")
    return read_probe(flavor, run.stdout, run.stderr, run.returncode)


def read_probe(flavor: Flavor, stdout: str, stderr: str, returncode: int) -> Probe:
    """Makes a probe of what the subprocess printed: one JSON object per step that worked, or an error."""
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    done = tuple(line["step"] for line in lines if "step" in line)
    version = next((line["version"] for line in lines if "version" in line), None)
    error = next((line["error"] for line in lines if "error" in line), None)
    if error is None and returncode != 0:
        step = _STEPS[min(len(done), len(_STEPS) - 1)]
        error = f"{flavor.title} {describe_exit(returncode)} at the step {step!r} ({one_line(stderr[-300:], 200)})."
    return Probe(version, done, error)


def describe_exit(returncode: int) -> str:
    """Says how a process ended: "crashed (SIGSEGV)" or "ended with code 3"."""
    if returncode >= 0:
        return f"ended with code {returncode}"
    try:
        return f"crashed ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"crashed (signal {-returncode})"


def _try_steps(flavor: Flavor) -> None:
    """Runs in the subprocess; prints each step when it worked."""
    from spikeexport.backends.tensorrt.logger import BuildLog

    module = load_module(flavor)
    _print({"step": "import", "version": module.__version__})
    log = BuildLog(module)
    for step, create in (("builder", module.Builder), ("runtime", module.Runtime)):
        try:
            made = create(log.logger)
        except (TypeError, RuntimeError) as error:
            raise BackendError(f"{flavor.title} cannot create its {step}: {log.first_error()} ({error}).") from error
        if made is None:
            raise BackendError(f"{flavor.title} cannot create its {step}: {log.first_error()}.")
        _print({"step": step})


def _print(value: dict[str, str]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    try:
        _try_steps(FLAVORS[sys.argv[1]])
    except BackendError as failure:
        _print({"error": str(failure)})
