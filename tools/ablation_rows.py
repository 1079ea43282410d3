"""The rows of the ablation table and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALPHA = "20"
"""The paper's threshold for a model that it gives none for."""


@dataclass(frozen=True)
class Row:
    """One plan.

    Attributes:
        name: In the table.
        wishes: Fields of `PlanOptions`.
        bits: Weight and activation bits; other than 8 and 8 nothing can be exported.
        per_token: Dynamic scales per token in place of the plan's, which no engine fuses.
    """

    name: str
    wishes: Mapping[str, Any] = field(default_factory=dict)
    bits: tuple[int, int] = (8, 8)
    per_token: bool = False

    @property
    def exportable(self) -> bool:
        """Whether `export` can write this plan."""
        return self.bits == (8, 8) and not self.per_token


_PLAIN = {"qfem": "off", "qfep": "off", "smooth": "off", "scales": "absmax", "rounding": "nearest"}

_SIX_BITS = {"smooth": "rotate", "scales": "percentile:99.99"}
"""Rotated inputs are nearly normal: at 6 bits a finer step is worth the few values that it clips."""

ROWS = (
    Row("none", _PLAIN),
    Row("QFeM", {**_PLAIN, "qfem": ALPHA}),
    Row("QFeP", {**_PLAIN, "qfep": "auto"}),
    Row("QFeM + QFeP", {**_PLAIN, "qfem": ALPHA, "qfep": "auto"}),
    Row("SmoothQuant", {**_PLAIN, "smooth": "smoothquant"}),
    Row("OutlierTune", {**_PLAIN, "smooth": "outliertune"}),
    Row("four folds", {**_PLAIN, "smooth": "folds"}),
    Row("fixed rule", {**_PLAIN, "qfem": "first-last:3"}),
    Row("per-token dynamic", _PLAIN, per_token=True),
    Row("default", {}),
    Row("default without prefix", {"qfep": "off"}),
    Row("default, no exclusions", {"qfem": "off"}),
    Row("default, not rotated", {"smooth": "shift"}),
    Row("all inputs rotated", {"smooth": "rotate"}),
    Row("all inputs rotated, W8A6", _SIX_BITS, bits=(8, 6)),
    Row("all inputs rotated, W6A6", _SIX_BITS, bits=(6, 6)),
    Row("default, W4A8", {}, bits=(4, 8)),
)

_COLUMNS = (
    ("perplexity", "perplexity", "{:.2f}"),
    ("x FP32 with BOS", "ratio_bos", "{:.3f}"),
    ("x FP32 behind the prefix", "ratio_prefix", "{:.3f}"),
    ("KL", "kl", "{:.4f}"),
    ("excluded", "excluded_share", "{:.1%}"),
    ("worst ratio left", "worst_ratio", "{:.0f}"),
    ("seconds", "seconds", "{:.0f}"),
)


def markdown(table: Mapping[str, Any]) -> str:
    """Returns the table as Markdown."""
    head = ["plan", *(title for title, _, _ in _COLUMNS), "exports"]
    lines = [
        f"{table['model']}, {table['text']}, {table['windows']} windows of {table['seqlen']}, calibration "
        f"{', '.join(table['calibration'])}; FP32 with BOS {table['fp32']:.3f}",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---", *["---:"] * len(_COLUMNS), "---"]) + " |",
    ]
    for row in table["rows"]:
        cells = [form.format(row[key]) for _, key, form in _COLUMNS]
        lines.append("| " + " | ".join([row["name"], *cells, "yes" if row["exportable"] else "no"]) + " |")
    return "\n".join(lines) + "\n"
