"""Both sides' logits as Polygraphy's data: what `polygraphy run --load-outputs` reads, and what it saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import SpikeExportError, UsageError, one_line
from spikeexport.calibration.foundation.files import staged_outputs
from spikeexport.runners.base import CausalRunner

LOGITS = "logits"

Save = Callable[[int, Mapping[str, Mapping[str, np.ndarray]]], None]
"""Takes the number of a window and, by the runner's name, its outputs by name."""


@contextlib.contextmanager
def outputs_writer(path: Path | None) -> Iterator[Save]:
    """Yields a function that saves one window's outputs as an iteration of Polygraphy's `RunResults`.

    A path ending in .json becomes one file, for which all windows are held in memory; any other path becomes a folder
    with a file for each window. Nothing is left under that name when the body raises.

    Args:
        path: Where to, or None to save nothing.
    """
    if path is None:
        yield lambda index, outputs: None
        return
    from polygraphy.comparator import RunResults

    results = RunResults()
    with staged_outputs(path) as staging:
        target = staging / path.name

        def save(index: int, outputs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
            single = RunResults()
            for name, arrays in outputs.items():
                single.add([dict(arrays)], runner_name=name)
            if path.suffix == ".json":
                _append(results, single)
            else:
                target.mkdir(exist_ok=True)
                single.save(str(target / f"{index}.json"))

        yield save
        if path.suffix == ".json":
            results.save(str(target))


def _append(results: Any, single: Any) -> None:
    for name, iterations in single.items():
        if name in list(results.keys()):
            results[name].extend(iterations)
        else:
            results.append((name, list(iterations)))


def load_outputs(path: Path) -> dict[str, list[Any]]:
    """Reads a file or a folder of files that Polygraphy or `--save-outputs` wrote.

    Returns:
        Runner's name -> its iterations in order, each a mapping of output names to arrays.

    Raises:
        SpikeExportError: There is nothing, or it is not Polygraphy's.
    """
    files = sorted(path.glob("*.json"), key=lambda file: (len(file.stem), file.stem)) if path.is_dir() else [path]
    found: dict[str, list[Any]] = {}
    for file in files:
        for name, iterations in _load_file(file).items():
            found.setdefault(name, []).extend(iterations)
    if not found:
        raise SpikeExportError(f"{path} holds no saved outputs: give what `polygraphy run --save-outputs` wrote.")
    return found


def _load_file(file: Path) -> Any:
    from polygraphy.comparator import RunResults
    from polygraphy.exception import PolygraphyException

    if not file.is_file():
        raise SpikeExportError(f"{file} does not exist: check the path of --load-outputs.")
    try:
        return RunResults.load(str(file))
    except (PolygraphyException, ValueError, KeyError, TypeError) as error:
        raise SpikeExportError(
            f"{file} holds no outputs of Polygraphy ({one_line(error, 120)}): save them with `polygraphy run "
            "--save-outputs` or `spikeexport compare --save-outputs`."
        ) from error


class ReplayedRunner(CausalRunner):
    """Gives logits that were saved in place of running: one saved iteration for each call, in order.

    Everything else (tokenizer, prefix, BOS) is the subject's whose run was saved.
    """

    def __init__(self, subject: CausalRunner, name: str, iterations: list[Any], path: Path) -> None:
        """Keeps `subject` open for what was not saved."""
        self._iterations = iter(iterations)
        self._path, self._saved_name = path, name
        self.name = f"{subject.name} (outputs of {path.name})"
        self.tokenizer, self.vocab_size = subject.tokenizer, subject.vocab_size
        self.prefix_ids, self.prefix_logits = subject.prefix_ids, subject.prefix_logits
        self.bos_id, self.eos_ids = subject.bos_id, subject.eos_ids
        self.max_positions, self.max_batch = subject.max_positions, 1

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, None]:
        """Returns the next saved logits.

        Raises:
            SpikeExportError: They are used up, or belong to other tokens.
        """
        try:
            outputs = next(self._iterations)
        except StopIteration:
            raise SpikeExportError(
                f"{self._path} holds fewer windows of {self._saved_name} than are compared: name fewer with --windows."
            ) from None
        if LOGITS not in outputs:
            raise SpikeExportError(f"{self._path}: {self._saved_name} has no output {LOGITS!r}: save all outputs.")
        logits = np.asarray(outputs[LOGITS], dtype=np.float32)
        if logits.shape != (*ids.shape, self.vocab_size):
            raise SpikeExportError(
                f"{self._path}: logits of {self._saved_name} are {list(logits.shape)}, expected "
                f"{[*ids.shape, self.vocab_size]}: compare with the --text, --windows and --seqlen of the saved run."
            )
        return (logits[:, -1:] if last_only else logits), None

    def decode(self, ids: np.ndarray, cache: Any) -> tuple[np.ndarray, None]:
        """Refuses: only whole windows were saved."""
        raise UsageError(f"{self.name} cannot go on: only the logits of whole windows were saved.")


def replayed(subject: CausalRunner, path: Path, saved: dict[str, list[Any]], *, alone: bool) -> CausalRunner:
    """Returns `subject` with its saved logits where `saved` has them.

    Args:
        subject: An open subject.
        path: Where `saved` comes from.
        saved: What `load_outputs` returned.
        alone: Whether the only runner in it is this subject's whatever its name.

    Raises:
        SpikeExportError: It is to be this subject's and several runners are there, none of its name.
    """
    if subject.name in saved:
        return ReplayedRunner(subject, subject.name, saved[subject.name], path)
    if not alone:
        return subject
    if len(saved) > 1:
        raise SpikeExportError(
            f"{path} holds outputs of {', '.join(saved)}, none of them {subject.name}: save one runner alone."
        )
    name, iterations = next(iter(saved.items()))
    return ReplayedRunner(subject, name, iterations, path)
