"""Plots of what `compare` found inside: error by layer, and spikes before and after."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from spikeexport.report.plots import HIGH, INK, LOW, SMALL, THIRD, Series, series_plot

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")
_READERS = {
    "q_proj": "q, k and v_proj",
    "o_proj": "o_proj",
    "gate_proj": "gate and up_proj",
    "down_proj": "down_proj",
}


def layer_of(name: str) -> int | None:
    """Returns the index of the decoder layer in a module path."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def added_up_plot(layers: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Blocks as a line, linears as points, excluded ones marked: errors as they add up in use."""
    return _error_plot(layers, "snr_db", with_blocks=True)


def alone_plot(layers: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Each linear on the original's own input."""
    measured = [layer for layer in layers if layer["alone_snr_db"] is not None]
    return _error_plot(measured, "alone_snr_db", with_blocks=False)


def _error_plot(layers: Sequence[Mapping[str, Any]], key: str, *, with_blocks: bool) -> Markup | None:
    groups: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for layer in layers:
        place = layer_of(layer["name"])
        if place is None:
            continue
        if layer["kind"] == "block":
            groups["block output"].append((place, layer[key]))
        else:
            groups["INT8 linear" if layer["quantized"] else "other linear"].append((place, layer[key]))
    looks = {"block output": (INK, "", True), "INT8 linear": (LOW, "o", False), "other linear": (HIGH, "D", False)}
    series = [
        Series(label, [x for x, _ in groups[label]], [y for _, y in groups[label]], *look)
        for label, look in looks.items()
        if groups[label] and (with_blocks or label != "block output")
    ]
    return series_plot(series, x_label="layer", y_label="SNR, dB") if series else None


def spike_plots(spikes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One plot for each kind of input: largest S and median by layer, in the original and in the candidate."""
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for site in spikes:
        if layer_of(site["name"]) is not None:
            kinds[site["name"].rsplit(".", 1)[-1]].append(site)
    return [_spike_plot(kind, sites) for kind, sites in kinds.items()]


def _spike_plot(kind: str, sites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    layers = [layer_of(site["name"]) or 0 for site in sites]
    looks = (
        ("max, original", "before", "max", HIGH, False),
        ("max, candidate", "after", "max", LOW, False),
        ("median, original", "before", "median", HIGH, True),
        ("median, candidate", "after", "median", LOW, True),
    )
    series = [
        Series(label, layers, [site[side][figure] for site in sites], colour, "", dashes=dashes)
        for label, side, figure, colour, dashes in looks
    ]
    worst = {side: max(site[side]["ratio"] for site in sites) for side in ("before", "after")}
    return {
        "caption": f"Input of {_READERS.get(kind, kind)}",
        "detail": f"· largest max/median {worst['before']:.0f} → {worst['after']:.0f}",
        "svg": series_plot(series, x_label="layer", y_label="S", log=True, size=SMALL),
    }


def position_plot(values: Sequence[float], smoothed: int) -> Markup:
    """KL by position, the first ones spread out, with a running mean over `smoothed` positions."""
    import numpy as np

    kl = np.maximum(np.array(values), 1e-7)
    positions = list(range(1, len(kl) + 1))
    series = [Series("each position", positions, kl.tolist(), THIRD, "", width=0.9, alpha=0.6)]
    if len(kl) >= 4 * smoothed:
        smooth = np.convolve(kl, np.ones(smoothed) / smoothed, mode="valid")
        middle = [place + (smoothed + 1) / 2 for place in range(len(smooth))]
        series.append(Series(f"mean of {smoothed}", middle, smooth.tolist(), HIGH, "", width=2))
    return series_plot(series, x_label="position in the window", y_label="KL, nats", log=True, log_x=True)


def trade_off_plot(rows: Sequence[Mapping[str, Any]], chosen: int) -> Markup | None:
    """Perplexity against the share of weights left out; the chosen number of linears marked."""
    if len(rows) < 2:
        return None
    shares = [100 * row["weight_share"] for row in rows]
    series = [Series("held-out calibration windows", shares, [row["perplexity"] for row in rows], LOW)]
    taken = [row for row in rows if row["linears"] == chosen]
    if taken:
        point = taken[0]
        series.append(
            Series(f"chosen: {chosen} linears", [100 * point["weight_share"]], [point["perplexity"]], HIGH, "D", False)
        )
    return series_plot(series, x_label="weights left unquantised, %", y_label="perplexity")
