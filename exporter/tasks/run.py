"""`spikeexport eval --tasks`: any subject's scores on lm-eval's tasks."""

from __future__ import annotations

import contextlib
import difflib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeexport.calibration.foundation.errors import SpikeExportError, UsageError, one_line
from spikeexport.calibration.foundation.progress import say
from spikeexport.runners.base import CausalRunner

GROUPS = Path(__file__).parent
"""Folder of the project's own groups of lm-eval's tasks."""

_RESAMPLES = 1000
"""Bootstrap resamples for the standard errors of figures that are no means: they are then right to about 2 %."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of one subject.

    Attributes:
        scores: Task (or group) -> metric -> value; `<metric>_stderr` is its standard error.
        samples: Task -> number of questions that were asked.
        seconds: Time of asking and scoring, without loading the subject.
        lm_eval: lm-eval's version.
    """

    scores: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, int]
    seconds: float
    lm_eval: str


@dataclass(frozen=True)
class TaskRequest:
    """What is asked.

    Attributes:
        names: Tasks, groups or tags of lm-eval.
        folder: Folder of own tasks and local data, or None.
        limit: Questions per task; None = all.
        num_fewshot: Examples in front of each question; None = as the task says.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None


def run_tasks(runner: CausalRunner, request: TaskRequest) -> TaskScores:
    """Scores an open subject.

    Raises:
        SpikeExportError: lm-eval is not installed, or a task's data cannot be had; the message says what to do.
        UsageError: A task is unknown, or the folder is none.
    """
    import_lm_eval()
    started = time.monotonic()
    with _tasks(request) as tasks:
        found = _evaluate(runner, tasks, request)
    return TaskScores(
        scores={name: _metrics(values) for name, values in {**found.get("groups", {}), **found["results"]}.items()},
        samples={name: int(count["effective"]) for name, count in found["n-samples"].items()},
        seconds=time.monotonic() - started,
        lm_eval=_version(),
    )


def import_lm_eval() -> Any:
    """Imports lm-eval and quietens it: what it has to say is in its results.

    Raises:
        SpikeExportError: It is not installed or broken.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise SpikeExportError(
            f'lm-eval is not usable ({one_line(error)}): pip install "spikeexport[eval]" installs it.'
        ) from error
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    return lm_eval


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


def _evaluate(runner: CausalRunner, tasks: list[Any], request: TaskRequest) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from spikeexport.tasks.model import SpikeExportLM

    with contextlib.redirect_stdout(sys.stderr):
        found = simple_evaluate(
            SpikeExportLM(runner),
            tasks=tasks,
            limit=request.limit,
            num_fewshot=request.num_fewshot,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
        )
    assert found is not None, "lm-eval answers on the only process there is"
    return found


@contextlib.contextmanager
def _tasks(request: TaskRequest) -> Iterator[list[Any]]:
    """Yields lm-eval's task objects, their data loaded."""
    from lm_eval.tasks import TaskManager
    from spikeexport.tasks.local_files import write_overrides

    manager = _manager(request)
    _require_known(request.names, manager.all_tasks)
    with tempfile.TemporaryDirectory() as overrides:
        if request.folder is not None:
            write_overrides(request.folder, manager.task_index, Path(overrides))
            changed = TaskManager(include_path=overrides, include_defaults=False)
            manager.task_index.update(changed.task_index)
        yield [_load(manager, name) for name in request.names]


def _manager(request: TaskRequest) -> Any:
    """Returns lm-eval's index of tasks, without its own 14 000 (seconds to read) where nobody needs them."""
    from lm_eval.tasks import TaskManager

    folder = request.folder
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--tasks-dir {folder} is no folder: give one with lm-eval YAMLs or files such as piqa.jsonl.")
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(request.names) <= set(own.all_subtasks):
            return own
    say("Looking through lm-eval's tasks…")
    return TaskManager(include_path=[GROUPS, *([folder] if folder else [])])


def _require_known(names: Sequence[str], known: Sequence[str]) -> None:
    if not names:
        raise UsageError("--tasks names no task: write --tasks piqa,hellaswag.")
    for name in names:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, 3)) or "`lm_eval ls tasks` lists them"
            raise UsageError(f"Unknown task {name!r} for --tasks (close: {close}); own ones come with --tasks-dir.")


def _load(manager: Any, name: str) -> Any:
    try:
        loaded = manager.load([name])
    except Exception as error:  # Whatever a data set's builder, its files or the network raise.
        raise SpikeExportError(
            f"Task {name} cannot be loaded ({type(error).__name__}: {one_line(error, 240)}): check its data, or put "
            f"the questions into {name}.jsonl in a folder and name it with --tasks-dir."
        ) from error
    groups = loaded.get("groups") or {}
    return groups[name] if name in groups else next(iter(loaded["tasks"].values()))


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers; lm-eval writes `acc,none` where no filter was used."""
    return {
        key.removesuffix(",none").replace("_stderr,none", "_stderr"): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in key
    }
