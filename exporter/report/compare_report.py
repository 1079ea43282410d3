"""The comparison as a page: verdict, key figures, error by layer, KL by position, worst windows, plan, engine truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from spikeexport.calibration.records.profile import Profile
from spikeexport.compare.result import CompareResult
from spikeexport.defaults import SELF_TEXT
from spikeexport.report.facts import engine_rows, exclusion_rows, plan_rows
from spikeexport.report.page import write_page
from spikeexport.report.plots import HIGH, INK, LOW, THIRD, Series, series_plot
from spikeexport.report.profile_report import profile_sections
from spikeexport.report.verdict import Verdict, judge

_LAYERS_SHOWN = 12
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")
_HEAT_NATS = 1.0
"""KL of a token that is drawn at full strength."""

_SMOOTHED = 16


@dataclass(frozen=True)
class Extras:
    """What a comparison's report may show beside the comparison.

    Attributes:
        profile: The original's spikes.
        engines: What `inspect` tells about engines built from the candidate.
        table: A table under the key figures: a header and rows of texts.
    """

    profile: Profile | None = None
    engines: tuple[Mapping[str, Any], ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


def write_compare_report(result: CompareResult, path: Path, extras: Extras | None = None) -> None:
    """Writes the report of a comparison to `path`.

    Raises:
        SpikeExportError: The file system refused.
    """
    data = result.to_json()
    extras = extras or Extras()
    facts = data["candidate_facts"]
    write_page(
        path,
        "compare.html",
        f"{data['candidate']} against {data['reference']}",
        data=data,
        text_name=text_name(data),
        verdict=verdict_of(data),
        cards=_cards(data),
        layer_plot=_layer_plot(data["layers"]),
        worst_layers=sorted(data["layers"], key=lambda layer: layer["snr_db"])[:_LAYERS_SHOWN],
        behind_note=", both behind the prefix" if data["behind_prefix"] else "",
        kl_plot=_kl_plot(data["kl_by_position"]),
        windows=[_window(window) for window in data["worst_windows"]],
        plan=plan_rows(facts),
        exclusions=exclusion_rows(facts),
        trade_off_plot=_trade_off_plot(facts.get("trade_off", [])),
        engines=[engine_rows(engine) for engine in (facts, *extras.engines) if "int8_coverage" in engine],
        profile=extras.profile,
        spikes=profile_sections(extras.profile) if extras.profile else {},
        table=extras.table,
        figures=figure_rows(data),
    )


def text_name(data: Mapping[str, Any]) -> str:
    """Returns what a reader calls the text, without the folders on the machine that measured."""
    return "text sampled from the reference" if data["text"] == SELF_TEXT else Path(data["text"]).name


def verdict_of(data: Mapping[str, Any]) -> Verdict:
    """Returns the verdict on a comparison's JSON."""
    return judge(data["perplexity"]["ratio"], data["perplexity"]["ratio_interval"], data["kl_divergence"])


def _cards(data: Mapping[str, Any]) -> list[dict[str, str]]:
    ppl, logits = data["perplexity"], data["logits"]
    low, high = ppl["ratio_interval"]
    return [
        {
            "name": "Perplexity ratio",
            "value": f"{ppl['ratio']:.3f}",
            "note": f"95 % interval {low:.3f} to {high:.3f}",
        },
        {
            "name": "Perplexity",
            "value": f"{ppl['candidate']:.2f}",
            "note": f"reference {ppl['reference']:.2f}",
        },
        {
            "name": "KL divergence",
            "value": f"{data['kl_divergence']:.4f}",
            "note": "nats per token, mean",
        },
        {
            "name": "Same best token",
            "value": f"{data['top1_agreement']:.1%}",
            "note": f"best five shared {data['top5_agreement']:.1%}",
        },
        {
            "name": "Logits",
            "value": f"{logits['snr_db']:.1f} dB",
            "note": f"SNR; cosine {logits['cosine']:.4f}",
        },
    ]


def _layer_plot(layers: list[dict[str, Any]]) -> Markup | None:
    """Blocks as a line, linears as points, excluded ones marked."""
    placed = [(int(found[1]), layer) for layer in layers if (found := _LAYER.search(layer["name"]))]
    if not placed:
        return None
    groups = {
        "block output": [(i, layer["snr_db"]) for i, layer in placed if layer["kind"] == "block"],
        "INT8 linear": [(i, layer["snr_db"]) for i, layer in placed if layer["quantized"] is True],
        "excluded linear": [(i, layer["snr_db"]) for i, layer in placed if layer["quantized"] is False],
    }
    looks = {"block output": (INK, "", True), "INT8 linear": (LOW, "o", False), "excluded linear": (HIGH, "D", False)}
    series = [
        Series(label, [x for x, _ in points], [y for _, y in points], *looks[label])
        for label, points in groups.items()
        if points
    ]
    return series_plot(series, x_label="layer", y_label="SNR, dB")


def _kl_plot(kl: list[float]) -> Markup:
    values = np.maximum(np.array(kl), 1e-7)
    positions = list(range(len(values)))
    series = [Series("each position", positions, values.tolist(), THIRD, "", width=0.9, alpha=0.5)]
    if len(values) >= 4 * _SMOOTHED:
        smooth = np.convolve(values, np.ones(_SMOOTHED) / _SMOOTHED, mode="valid")
        shifted = [position + (_SMOOTHED - 1) / 2 for position in range(len(smooth))]
        series.append(Series(f"mean of {_SMOOTHED}", shifted, smooth.tolist(), HIGH, "", width=2))
    return series_plot(series, x_label="position in the window", y_label="KL, nats", log=True)


def _trade_off_plot(rows: list[Mapping[str, Any]]) -> Markup | None:
    if len(rows) < 2:
        return None
    shares = [100 * row["weight_share"] for row in rows]
    series = [Series("held-out windows", shares, [row["kl"] for row in rows], LOW)]
    return series_plot(series, x_label="weights left unquantised, %", y_label="KL, nats")


def _window(window: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": window["index"],
        "kl": f"{window['kl']:.4f}",
        "reference": f"{window['perplexity']['reference']:.1f}",
        "candidate": f"{window['perplexity']['candidate']:.1f}",
        "tokens": [
            {"text": text, "kl": f"KL {kl:.3f}", "heat": f"{min(kl / _HEAT_NATS, 1) * 0.75:.2f}"}
            for text, kl in window["tokens"]
        ],
    }


def figure_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and values of a comparison's figures, the noise floor beside them where it was measured."""
    ppl, behind, noise = data["perplexity"], data["behind_prefix"], data["noise"]
    logits = data["logits"]
    rows = [
        ("Perplexity of the reference", _with_interval(ppl["reference"], ppl["reference_interval"])),
        ("Perplexity of the candidate", _with_interval(ppl["candidate"], ppl["candidate_interval"])),
        ("Ratio", _with_interval(ppl["ratio"], ppl["ratio_interval"])),
        ("KL divergence", f"{data['kl_divergence']:.4f} nats a token"),
        ("Same best token", f"{data['top1_agreement']:.1%}; best five shared {data['top5_agreement']:.1%}"),
        ("Logits", f"SNR {logits['snr_db']:.1f} dB, cosine {logits['cosine']:.5f}, largest {logits['max_abs']:.3f}"),
        ("Time", f"{data['seconds']:.0f} s"),
    ]
    if noise:
        rows[5:5] = [("Noise floor", noise_sentence(noise))]
    if behind:
        rows[2:2] = [
            ("Reference behind the same prefix", f"{behind['perplexity']:.3f}"),
            ("KL against it", f"{behind['kl_divergence']:.4f} nats"),
            ("Same best token as it", f"{behind['top1_agreement']:.1%}"),
        ]
    return rows


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """Says how far the candidate is from itself when it is moved a little."""
    return (
        f"KL {noise['kl_divergence']:.4f} nats, ratio {noise['perplexity_ratio']:.4f}, same best token "
        f"{noise['top1_agreement']:.1%}: the candidate against itself with its norms moved by {noise['relative']:g}"
    )


def _with_interval(value: float, interval: list[float]) -> str:
    return f"{value:.3f}   (95 % interval over windows {interval[0]:.3f} to {interval[1]:.3f})"
