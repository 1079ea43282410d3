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
    "onnxruntime-genai",
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
    "onnxruntime-genai": "pip install 'spikeexport[genai]'",
    "lm-eval": "pip install 'spikeexport[eval]'",
}
"""Optional distribution -> the command that installs it."""

LIBRARIES = ("torch", "onnxruntime", "onnxruntime_genai", "tensorrt", "tensorrt_rtx")
"""Modules with native code, each tried in a subprocess."""

_TIMEOUT_S = 120
_ASK_TORCH = (
    "import json, torch; "
    "print(json.dumps({'cuda_build': torch.version.cuda, 'cuda_answers': torch.cuda.is_available()}))"
)
_ASK_ONNXRUNTIME = "import json, onnxruntime; print(json.dumps({'providers': onnxruntime.get_available_providers()}))"
_ASK_GENAI = "import json, onnxruntime_genai; print(json.dumps({'version': onnxruntime_genai.__version__}))"
_ASK_BACKEND = (
    "import json; from dataclasses import asdict; from spikeexport.doctor import backend_state; "
    "print(json.dumps(asdict(backend_state({name!r}))))"
)


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
            "onnxruntime_genai": lambda: _ask("onnxruntime_genai", _ASK_GENAI),
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
        "libraries": {name: answers[name] for name in LIBRARIES},
        "backends": {name: answers[f"backend {name}"] for name in BACKENDS},
        "missing": _missing(versions, answers["gpus"]),
        "conflicts": _conflicts(versions),
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
    found = _ask(f"the backend {name}", _ASK_BACKEND.format(name=name))
    return asdict(BackendState(False, False, found["why"], found["why"])) if "why" in found else found


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
        return {"why": f"{_tried(module)} did not answer within {_TIMEOUT_S} s"}
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or not lines:
        last = run.stderr.strip().splitlines()[-1:] or [""]
        return {"why": f"{_tried(module)} {describe_exit(run.returncode)}: {one_line(last[0], 160)}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _tried(module: str) -> str:
    return module if " " in module else f"import {module}"


def _conflicts(versions: dict[str, str | None]) -> list[str]:
    if versions["onnxruntime"] is None or versions["onnxruntime-gpu"] is None:
        return []
    return ["onnxruntime and onnxruntime-gpu are one module and overwrite each other: uninstall both, install one"]


def _missing(versions: dict[str, str | None], gpus: dict[str, Any]) -> dict[str, str]:
    """Returns what is not there -> how to get it."""
    missing = {name: command for name, command in EXTRAS.items() if versions[name] is None}
    if versions["onnxruntime-gpu"] is not None:
        missing.pop("onnxruntime", None)
    if gpus["why_none"]:
        missing["GPU"] = f"{gpus['why_none']}: engines of TensorRT and TensorRT-RTX run elsewhere"
    return missing
