"""`spikeexport bench`: prefill and decode speed, size and memory of subjects, side by side in one process."""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.bench_peers import open_bench_subject, subject_path
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.defaults import BENCH_DECODE, BENCH_PREFILL, BENCH_ROUNDS
from spikeexport.machine_load import LoadMeter
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.cpu import cpu_model, physical_cores
from spikeexport.runners.run_options import DEFAULT_RUN, RunOptions

DISTURBED = 0.1
"""Share of the CPUs taken by other processes from which a round is measured again."""

_MOST_TRIES = 4
_PAUSE_S = 0.05
"""Rest before each subject's turn: idle threads of the one before stop spinning meanwhile."""


@dataclass(frozen=True)
class SubjectSpeed:
    """Figures of one subject; times are medians over rounds.

    Attributes:
        name: The subject as named by the caller.
        prefill_tokens_per_s: Prompt tokens of all sequences per second, last logits only.
        decode_tokens_per_s: New tokens of all sequences per second behind the prompt.
        prefill_ms: Time of one prefill.
        decode_ms: Time of one step.
        prefill_spread: (75 % - 25 % quartile) / median of the prefill times.
        decode_spread: The same of the steps' round medians.
        load_s: Time to open the subject.
        size_bytes: Bytes of its files, or None for a hub id.
        peak_rss_bytes: Largest resident set in a process of its own, or None where it is not measured.
    """

    name: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_ms: float
    decode_ms: float
    prefill_spread: float
    decode_spread: float
    load_s: float
    size_bytes: int | None
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class SpeedRatio:
    """How many times faster the subject is than another one: medians of ratios paired by round."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured.

    Attributes:
        subjects: The subject first, then those it was measured against.
        ratios: Name of each other subject -> how many times faster the subject is.
        machine: Processor, threads, versions.
        prefill: Prompt tokens.
        decode: Steps per round.
        batch: Sequences side by side.
        rounds: Measured rounds.
        repeated: Rounds that were measured again, because other processes disturbed them.
        others_share: Largest share of the CPUs that others took in a round that counts.
    """

    subjects: tuple[SubjectSpeed, ...]
    ratios: dict[str, SpeedRatio]
    machine: dict[str, str | int]
    prefill: int
    decode: int
    batch: int
    rounds: int
    repeated: int
    others_share: float

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `bench --json` prints: the subject's own figures, then everything."""
        return {**asdict(self.subjects[0]), **asdict(self)}


class _Turns:
    """One subject's times, one entry per round: seconds of the prefill, median seconds of a step."""

    def __init__(
        self, name: str, runner: CausalRunner, load_s: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.name, self.runner, self.load_s, self._clock = name, runner, load_s, clock
        self.prefill: list[float] = []
        self.decode: list[float] = []
        self.others: list[float] = []

    def run(self, ids: np.ndarray, steps: int) -> None:
        time.sleep(_PAUSE_S)
        meter = LoadMeter()
        meter.start()
        started = self._clock()
        _, cache = self.runner.prefill(ids, last_only=True)
        self.prefill.append(self._clock() - started)
        times = []
        for step in range(steps):
            token = ids[:, step % ids.shape[1]][:, None]
            started = self._clock()
            _, cache = self.runner.decode(token, cache)
            times.append(self._clock() - started)
        self.decode.append(statistics.median(times))
        self.others.append(meter.others_share() or 0.0)

    def forget_last(self) -> None:
        for times in (self.prefill, self.decode, self.others):
            times.pop()


def bench(
    subject: str | Path,
    against: Sequence[str | Path] = (),
    *,
    prefill: int = BENCH_PREFILL,
    decode: int = BENCH_DECODE,
    batch: int = 1,
    rounds: int = BENCH_ROUNDS,
    memory: bool = True,
    options: RunOptions = DEFAULT_RUN,
) -> BenchResult:
    """Measures subjects in turns, so that what else the machine does meets them all alike.

    Each round gives every subject one prefill and `decode` single steps behind it, in alternating order; the first
    round warms up and does not count. A round in which others took more than `DISTURBED` of the CPUs is measured again,
    as long as that leads anywhere.

    Args:
        subject: A SUBJECT.
        against: Others to compare with: SUBJECTs, `llama.cpp:FILE.gguf` or `genai:FOLDER`.
        prefill: Prompt tokens (made-up ids: speed does not depend on them).
        decode: Steps per round.
        batch: Sequences side by side.
        rounds: Rounds that count.
        memory: Whether to measure peak memory too, in one more process per subject.
        options: Threads for all, and what else applies to all; with one thread its CPU time is measured.

    Raises:
        UsageError: Numbers out of range, or a prompt that does not fit a subject.
        SpikeExportError: A subject cannot be opened or run.
    """
    names = [str(subject), *map(str, against)]
    if min(prefill, decode, batch, rounds) < 1:
        raise UsageError("--prefill, --decode, --batch and the rounds are counts: give 1 or more.")
    if len(set(names)) < len(names):
        raise UsageError("A subject is named twice: name each once.")
    with contextlib.ExitStack() as stack:
        turns = [_open(name, stack, options) for name in names]
        _require_room([turn.runner for turn in turns], prefill + decode, batch)
        ids = random_ids(min(turn.runner.vocab_size for turn in turns), batch, prefill)
        spare = 0 if options.threads == 1 else (_MOST_TRIES - 1) * rounds
        repeated = _measure(turns, ids, decode, rounds, spare)
    peaks = [_peak(name, prefill, decode, batch) if memory else None for name in names]
    subjects = tuple(_speed(turn, prefill, batch, peak) for turn, peak in zip(turns, peaks, strict=True))
    ratios = {turn.name: _ratio(turns[0], turn) for turn in turns[1:]}
    others = max(share for turn in turns for share in turn.others[1:])
    machine = describe_machine(options.threads)
    return BenchResult(subjects, ratios, machine, prefill, decode, batch, rounds, repeated, others)


def _measure(turns: list[_Turns], ids: np.ndarray, steps: int, rounds: int, spare: int) -> int:
    """Runs the rounds and one more before them to warm up; returns how many, at most `spare`, were measured again."""
    repeated = 0
    with progress_bar("Measuring", rounds + 1) as advance:
        number = 0
        while number <= rounds:
            for turn in turns if number % 2 else reversed(turns):
                turn.run(ids, steps)
            if number and repeated < spare and max(turn.others[-1] for turn in turns) > DISTURBED:
                repeated += 1
                for turn in turns:
                    turn.forget_last()
                continue
            number += 1
            advance()
    return repeated


def random_ids(vocab_size: int, batch: int, width: int) -> np.ndarray:
    """Returns int64 [batch, width] seeded token ids."""
    return np.random.default_rng(0).integers(min(16, vocab_size - 1), vocab_size, (batch, width)).astype(np.int64)


def describe_machine(threads: int | None = None) -> dict[str, str | int]:
    """Returns the processor, the threads that are used (None = by default), and the versions of what computes."""
    from importlib.metadata import PackageNotFoundError, version

    machine: dict[str, str | int] = {
        "cpu": cpu_model(),
        "threads": threads or physical_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in ("spikeexport", "onnxruntime", "onnxruntime-genai", "llama-cpp-python", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            machine[package] = version(package)
    return machine


def _open(name: str, stack: contextlib.ExitStack, options: RunOptions) -> _Turns:
    started = time.perf_counter()
    runner = stack.enter_context(open_bench_subject(name, options))
    load_s = time.perf_counter() - started
    # One thread's own CPU time does not count what other processes take meanwhile.
    return _Turns(name, runner, load_s, time.thread_time if options.threads == 1 else time.perf_counter)


def _require_room(runners: Sequence[CausalRunner], tokens: int, batch: int) -> None:
    for runner in runners:
        if tokens > runner.max_positions:
            raise UsageError(
                f"{runner.name} takes {runner.max_positions} tokens, {tokens} are asked for: ask for fewer."
            )
        if runner.max_batch is not None and batch > runner.max_batch:
            raise UsageError(f"{runner.name} takes batches of {runner.max_batch}: ask for less than {batch}.")


def _peak(name: str, prefill: int, decode: int, batch: int) -> int | None:
    from spikeexport.peak_memory import peak_rss_bytes

    return peak_rss_bytes(name, prefill, decode, batch)


def _speed(turn: _Turns, prefill: int, batch: int, peak: int | None) -> SubjectSpeed:
    prefill_s, decode_s = statistics.median(turn.prefill[1:]), statistics.median(turn.decode[1:])
    return SubjectSpeed(
        name=turn.name,
        prefill_tokens_per_s=batch * prefill / prefill_s,
        decode_tokens_per_s=batch / decode_s,
        prefill_ms=1e3 * prefill_s,
        decode_ms=1e3 * decode_s,
        prefill_spread=_spread(turn.prefill[1:]),
        decode_spread=_spread(turn.decode[1:]),
        load_s=turn.load_s,
        size_bytes=subject_bytes(turn.name),
        peak_rss_bytes=peak,
    )


def _spread(times: list[float]) -> float:
    low, high = np.quantile(times, [0.25, 0.75])
    return float((high - low) / statistics.median(times))


def _ratio(first: _Turns, other: _Turns) -> SpeedRatio:
    """Warm-up left out; each round's two times saw the same machine."""
    paired = {
        kind: statistics.median(b / a for a, b in zip(getattr(first, kind)[1:], getattr(other, kind)[1:], strict=True))
        for kind in ("prefill", "decode")
    }
    return SpeedRatio(**paired)


def subject_bytes(name: str) -> int | None:
    """Returns the bytes of a subject's files: a file with its external data, or everything in a folder."""
    path = subject_path(name)
    if path.is_file():
        data = path.with_name(f"{path.name}.data")
        return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return None
