"""The comparison in Markdown: for pull requests and tickets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spikeexport.calibration.foundation.files import write_text
from spikeexport.compare.result import CompareResult
from spikeexport.report.compare_report import Extras, figure_rows, text_name, verdict_of, worst_layers
from spikeexport.report.facts import engine_rows, exclusion_rows, plan_rows

_LAYERS_SHOWN = 12
_EXCERPT = 240


def write_compare_markdown(result: CompareResult, path: Path, extras: Extras | None = None) -> None:
    """Writes the report of a comparison to `path`.

    Raises:
        SpikeExportError: The file system refused.
    """
    data = result.to_json()
    blocks = [*_head(data), *_layers(data), *_windows(data), *_generations(data), *_plan(data, extras or Extras())]
    write_text(path, "\n\n".join(blocks) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; bars and line ends inside cells are made harmless."""
    lines = [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _code(text: str) -> str:
    """Returns text as a code span on one line, fenced by more backticks than it holds."""
    shown = text.replace("\n", "⏎")
    shown = shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "…"
    fence = "`"
    while fence in shown:
        fence += "`"
    if not shown.strip():
        return "(empty)"
    # A blank keeps the fence apart from a backtick at the ends.
    padding = " " if len(fence) > 1 else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _head(data: dict[str, Any]) -> list[str]:
    where = f"{data['windows']} windows of {data['seqlen']} tokens of {text_name(data)}"
    failures = [f"- **Check failed:** {failure}" for failure in data["failures"]]
    return [
        f"# {data['candidate']} against {data['reference']}",
        f"**{verdict_of(data).sentence}** Measured on {where}.",
        *(["\n".join(failures)] if failures else []),
        table(("Figure", "Value"), figure_rows(data)),
    ]


def _layers(data: dict[str, Any]) -> list[str]:
    if not data["layers"]:
        return []
    rows = [
        (f"`{layer['name']}`", _decibels(layer["alone_snr_db"]), _decibels(layer["snr_db"]), f"{layer['cosine']:.4f}")
        for layer in worst_layers(data)[:_LAYERS_SHOWN]
    ]
    first = data["first_bad_layer"]
    sentence = f"The error starts at `{first}`." if first else "No layer stands out."
    return ["## Error by layer", sentence, table(("Largest errors", "alone, dB", "in use, dB", "cosine"), rows)]


def _decibels(snr: float | None) -> str:
    return "-" if snr is None else f"{snr:.1f}"


def _windows(data: dict[str, Any]) -> list[str]:
    rows = [
        (
            window["index"],
            f"{window['kl']:.4f}",
            f"{window['perplexity']['reference']:.1f} → {window['perplexity']['candidate']:.1f}",
            _code(window["text"]),
        )
        for window in data["worst_windows"]
    ]
    return ["## Worst windows", table(("Window", "KL", "perplexity", "begins with"), rows)]


def _generations(data: dict[str, Any]) -> list[str]:
    blocks = []
    for one in data["generations"]:
        lines = [f"- prompt: {_code(one['prompt'])}", f"- both ({one['shared_tokens']} tokens): {_code(one['shared'])}"]
        if one["reference"] or one["candidate"]:
            lines += [f"- then the reference: {_code(one['reference'])}", f"- the candidate: {_code(one['candidate'])}"]
        blocks.append("\n".join(lines))
    return ["## Greedy continuations", *blocks] if blocks else []


def _plan(data: dict[str, Any], extras: Extras) -> list[str]:
    facts = data["candidate_facts"]
    blocks: list[str] = []
    if rows := plan_rows(facts):
        blocks += ["## What was decided", table(("", ""), rows)]
    if excluded := exclusion_rows(facts):
        cells = [(f"`{row['linear']}`", row["precision"], row["why"]) for row in excluded]
        blocks.append(table(("Excluded linear", "kept as", "because"), cells))
    engines = [rows for engine in (facts, *extras.engines) if (rows := engine_rows(engine))]
    if engines:
        blocks.append("## What the backends really compiled")
        blocks += [table(("", ""), rows) for rows in engines]
    return blocks
