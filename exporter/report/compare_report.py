"""The comparison as a page: verdict, key figures, error by layer, KL by position, worst windows, plan, engine truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.records.profile import Profile
from spikeexport.compare.result import CompareResult
from spikeexport.defaults import SELF_TEXT
from spikeexport.report.facts import engine_rows, exclusion_rows, plan_rows, provenance_rows
from spikeexport.report.layer_plots import added_up_plot, alone_plot, position_plot, spike_plots, trade_off_plot
from spikeexport.report.page import write_page
from spikeexport.report.profile_report import profile_sections
from spikeexport.report.verdict import Verdict, judge

_LAYERS_SHOWN = 12
_HEAT_NATS = 1.0
"""KL of a token that is drawn at full strength."""

_SMOOTHED = 16

_SPIKE_FROM = 3.0
"""Multiple of the median from which a token is shaded as a spike."""


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
        layer_plot=added_up_plot(data["layers"]),
        alone_plot=alone_plot(data["layers"]),
        worst_layers=worst_layers(data)[:_LAYERS_SHOWN],
        spike_changes=spike_plots(data["spikes"]),
        spike_text=_spike_text(data["spike_text"]),
        behind_note=", both behind the prefix" if data["behind_prefix"] else "",
        kl_plot=position_plot(data["kl_by_position"], _SMOOTHED),
        generations=data["generations"],
        windows=[_window(window) for window in data["worst_windows"]],
        plan=plan_rows(facts),
        exclusions=exclusion_rows(facts),
        trade_off_plot=trade_off_plot(facts.get("trade_off", []), len(facts.get("excluded", ()))),
        provenance=provenance_rows(facts),
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
    noise = data["noise"]["kl_divergence"] if data["noise"] else None
    return judge(data["perplexity"]["ratio"], data["perplexity"]["ratio_interval"], data["kl_divergence"], noise)


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
            "note": f"nats a token; noise floor {data['noise']['kl_divergence']:.4f}"
            if data["noise"]
            else "nats a token",
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


def worst_layers(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the layers, the largest error first: of linears alone where that was measured."""
    measured = [layer for layer in data["layers"] if layer["alone_snr_db"] is not None]
    key = "alone_snr_db" if measured else "snr_db"
    return sorted(measured or data["layers"], key=lambda layer: layer[key])


def _spike_text(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The tokens, shaded by how far they lie above the median on a logarithmic scale."""
    if found is None:
        return None
    values = np.array([value for _, value in found["tokens"]])
    ratios = values / max(float(np.median(values)), 1e-12)
    heat = np.clip(np.log(ratios / _SPIKE_FROM) / np.log(max(float(ratios.max()) / _SPIKE_FROM, 1.0 + 1e-9)), 0, 1)
    tokens = [
        {"text": text, "kl": f"S {value:.3g}, {ratio:.0f} medians", "heat": f"{0.85 * share:.2f}"}
        for (text, value), ratio, share in zip(found["tokens"], ratios, heat, strict=True)
    ]
    return {"site": found["site"], "tokens": tokens, "largest": f"{ratios.max():.0f}"}


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
        f"{noise['top1_agreement']:.1%}: the candidate against itself, its weights moved by {_power(noise['relative'])}"
    )


def _power(relative: float) -> str:
    """Returns 1e-06 as 1e-6."""
    mantissa, _, exponent = f"{relative:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _with_interval(value: float, interval: list[float]) -> str:
    return f"{value:.3f}   (95 % interval over windows {interval[0]:.3f} to {interval[1]:.3f})"
