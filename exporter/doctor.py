"""`spikeexport doctor`: what this machine can build and run, and what is missing for the rest.

Native libraries are first touched in subprocesses: a crash there is a line of the answer.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from spikeexport.backends.registry import BACKENDS, open_backend
from spikeexport.backends.tensorrt.flavor import FLAVORS, Flavor
from spikeexport.backends.tensorrt.gpus import ask_gpus
from spikeexport.backends.tensorrt.probe import describe_exit, probe
from spikeexport.calibration.foundation.errors import one_line

PACKAGES = (
    "spikeexport",
    "torch",
    "transformers",
    "mobius-onnx",
    "onnx-ir",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
    "lm-eval",
)
"""Distributions whose versions are reported."""

EXTRAS = {
    "onnxruntime": "pip install 'spikeexport[cpu]'",
    "tensorrt": "pip install 'spikeexport[tensorrt]'",
    "tensorrt-rtx": "pip install 'spikeexport[rtx]'",
    "lm-eval": "pip install 'spikeexport[eval]'",
}
"""Optional distribution -> the command that installs it."""

_TIMEOUT_S = 120
_ASK_TORCH = (
    "import json, torch; "
    "print(json.dumps({'cuda_build': torch.version.cuda, 'cuda_answers': torch.cuda.is_available()}))"
)
_ASK_ONNXRUNTIME = "import json, onnxruntime; print(json.dumps({'providers': onnxruntime.get_available_providers()}))"


@dataclass(frozen=True)
class BackendState:
    """What one backend can do here.

    Attributes:
        builds: Whether `build` works.
        runs: Whether what it builds runs.
        why_not_build: What is missing to build, or None.
        why_not_run: What is missing to run, or None.
    """

    builds: bool
    runs: bool
    why_not_build: str | None
    why_not_run: str | None


def doctor() -> dict[str, Any]:
    """Examines this machine and returns plain values: versions, GPUs, libraries, backends, what is missing."""
    with ThreadPoolExecutor() as pool:
        tasks: dict[str, Callable[[], Any]] = {
            "gpus": _gpus,
            "torch": lambda: _ask("torch", _ASK_TORCH),
            "onnxruntime": lambda: _ask("onnxruntime", _ASK_ONNXRUNTIME),
            **{flavor.module: partial(_probe, flavor) for flavor in FLAVORS.values()},
            **{f"backend {name}": partial(_backend, name) for name in BACKENDS},
        }
        answers = {name: future.result() for name, future in {n: pool.submit(t) for n, t in tasks.items()}.items()}
    versions = {name: installed_version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "gpus": answers["gpus"],
        "libraries": {name: answers[name] for name in ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx")},
        "backends": {name: answers[f"backend {name}"] for name in BACKENDS},
        "missing": _missing(versions, answers["gpus"]),
    }


def backend_state(name: str) -> BackendState:
    """Asks one backend what it can do here; a backend whose own package is broken is an answer, too."""
    try:
        backend = open_backend(name)
        build, run = backend.why_unavailable(), backend.why_cannot_run()
    except ImportError as error:
        build = run = f"its code cannot be imported ({one_line(error, 160)})"
    return BackendState(build is None, run is None, build, run)


def installed_version(distribution: str) -> str | None:
    """Returns the installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _probe(flavor: Flavor) -> dict[str, Any]:
    found = probe(flavor)
    return {"version": found.version, "done": list(found.done), "why": found.why}


def _backend(name: str) -> dict[str, Any]:
    return asdict(backend_state(name))


def _gpus() -> dict[str, Any]:
    answer = ask_gpus()
    return {"found": [asdict(gpu) for gpu in answer.gpus], "why_none": answer.why_none}


def _ask(module: str, code: str) -> dict[str, Any]:
    """Imports a module in a subprocess and returns what `code` prints, or why it broke."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"why": f"import {module} did not answer within {_TIMEOUT_S} s"}
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or not lines:
        last = run.stderr.strip().splitlines()[-1:] or [""]
        return {"why": f"import {module} {describe_exit(run.returncode)}: {one_line(last[0], 160)}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _missing(versions: dict[str, str | None], gpus: dict[str, Any]) -> dict[str, str]:
    """Returns what is not there -> how to get it."""
    missing = {name: command for name, command in EXTRAS.items() if versions[name] is None}
    if versions["onnxruntime-gpu"] is not None:
        missing.pop("onnxruntime", None)
    if gpus["why_none"]:
        missing["GPU"] = f"{gpus['why_none']}: engines of TensorRT and TensorRT-RTX run elsewhere"
    return missing
