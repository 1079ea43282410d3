"""Repeats the README's CPU table: a built folder against others, with the share of the machine's limits.

    python tools/bench_cpu.py smollm2.onnxruntime --against smollm2_fp32.onnx --against llama.cpp:SmolLM2.Q8_0.gguf \
        --against genai:smollm2-genai-int8 --prompts 128 512 --plot speed.png

Each prompt length is one interleaved run of all subjects in one process. `--plot` draws prompt tokens per second
against prompt length.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from cpu_limits import CpuLimits, measure_limits
from spikeexport.bench import BenchResult, SubjectSpeed, bench
from spikeexport.runners.run_options import RunOptions


def main() -> int:
    """Runs the benchmarks and prints a Markdown table (and JSON with --json)."""
    arguments = parse_arguments()
    results = [
        bench(
            arguments.subject,
            arguments.against,
            prefill=prompt,
            decode=arguments.decode,
            rounds=arguments.rounds,
            options=RunOptions(threads=arguments.threads),
            memory=prompt == arguments.prompts[0],
        )
        for prompt in arguments.prompts
    ]
    limits = measure_limits(int(results[0].machine["threads"]))
    print(markdown(results, limits, count_weights(Path(arguments.subject))))
    if arguments.plot:
        plot(results, arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", help="a folder that `spikeexport build --backend onnxruntime` wrote")
    parser.add_argument("--against", action="append", default=[], metavar="SUBJECT")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="1 measures the thread's CPU time: for machines that others use")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@dataclass(frozen=True)
class Weights:
    """Numbers of 8-bit weights in a built folder: of the decoder's linears, and of the head."""

    linears: int
    head: int


def count_weights(folder: Path) -> Weights | None:
    """Counts the weights that a token is multiplied with; None for anything but a built folder."""
    graphs = [folder / name for name in ("model.onnx", "head.onnx") if (folder / name).is_file()]
    if not graphs:
        return None
    sizes = {True: 0, False: 0}
    for node in (node for path in graphs for node in ir.load(path).graph):
        weight = node.inputs[1] if node.op_type in ("MatMulIntegerToFloat", "MatMulNBits") else None
        if weight is not None and weight.const_value is not None:
            sizes[node.metadata_props.get("spikeexport.module") == "lm_head"] += weight.const_value.size
    return Weights(linears=sizes[False], head=sizes[True])


def markdown(results: list[BenchResult], limits: CpuLimits | None, weights: Weights | None) -> str:
    """Returns the table: one row per subject, best and median times."""
    prompts = [result.prefill for result in results]
    head = ["subject", *(f"prefill {p}, tok/s" for p in prompts), f"decode behind {prompts[0]}, tok/s"]
    lines = [_row([*head, "files, MB", "peak RSS, MB", "load, s"]), _row(["---"] * (len(head) + 3))]
    for place, first in enumerate(results[0].subjects):
        speeds = [result.subjects[place].prefill_tokens_per_s for result in results]
        lines.append(
            _row(
                [
                    Path(first.name).name,
                    *(f"{speed:.0f}" for speed in speeds),
                    f"{first.decode_tokens_per_s:.0f}",
                    _mb(first.size_bytes),
                    _mb(first.peak_rss_bytes),
                    f"{first.load_s:.2f}",
                ]
            )
        )
    lines += ["", "Ratios (paired by round): " + "; ".join(_ratio_text(result) for result in results)]
    if limits is not None and weights is not None:
        lines += ["", _shares(results[0].subjects[0], limits, weights)]
    machine = ", ".join(f"{name} {value}" for name, value in results[0].machine.items())
    others = max(result.others_share for result in results)
    if results[0].machine["threads"] == 1:
        lines += ["", "Times are the CPU time of one thread, which other processes do not lengthen much."]
    else:
        repeated = sum(result.repeated for result in results)
        lines += ["", f"Other processes took up to {others:.0%} of the CPUs; {repeated} rounds were measured again."]
    return "\n".join([*lines, "", f"Machine: {machine}"])


def _shares(speed: SubjectSpeed, limits: CpuLimits, weights: Weights) -> str:
    read = (weights.linears + weights.head) * speed.decode_tokens_per_s / limits.read_bytes_per_s
    text = f"Limits: memory read {limits.read_bytes_per_s / 1e9:.1f} GB/s, of which decode reads {read:.0%} in weights"
    if limits.int8_ops_per_s is None:
        return text
    # The head runs on the last position only: it is no part of a prompt token's work.
    share = 2 * weights.linears * speed.prefill_tokens_per_s / limits.int8_ops_per_s
    return f"{text}; int8 {limits.int8_ops_per_s / 1e9:.0f} GOP/s, of which prefill reaches {share:.0%}"


def _ratio_text(result: BenchResult) -> str:
    parts = [
        f"{Path(name).name} prefill {ratio.prefill:.2f} x, decode {ratio.decode:.2f} x"
        for name, ratio in result.ratios.items()
    ]
    return f"at {result.prefill} tokens: " + ", ".join(parts)


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.0f}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(results: list[BenchResult], path: Path) -> None:
    """Draws prompt tokens per second against prompt length, one line per subject."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    prompts = [result.prefill for result in results]
    for place, subject in enumerate(results[0].subjects):
        speeds = [result.subjects[place].prefill_tokens_per_s for result in results]
        axes.plot(prompts, speeds, marker="o", label=Path(subject.name).name)
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel("tokens per second")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
