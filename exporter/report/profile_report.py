"""The profile as a page: maxima and medians by layer, ratios, spike tokens, massive activations."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from spikeexport.calibration.records.profile import ModuleSpikes, Profile
from spikeexport.report.page import write_page
from spikeexport.report.plots import WIDE, max_and_median

_RATIOS_SHOWN = 20
_TOKENS_SHOWN = 40
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def write_profile_report(profile: Profile, path: Path) -> None:
    """Writes the report of `profile` to `path`.

    Raises:
        SpikeExportError: The file system refused.
    """
    write_page(
        path,
        "profile.html",
        f"Activation spikes of {profile.model.name}",
        profile=profile,
        cards=_cards(profile),
        spikes=profile_sections(profile),
    )


def profile_sections(profile: Profile) -> dict[str, Any]:
    """Returns the plots and rows that spikes.html shows."""
    return {
        "plots": _site_plots(profile),
        "hidden_state": _hidden_state_plot(profile),
        "ratios": _ratio_rows(profile),
        "tokens": [_token_row(token) for token in profile.spike_tokens[:_TOKENS_SHOWN]],
        "tokens_left_out": max(0, len(profile.spike_tokens) - _TOKENS_SHOWN),
    }


def figure(value: float) -> str:
    """Returns a number with three significant digits, without exponents for ordinary sizes."""
    if value == 0 or not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def _cards(profile: Profile) -> list[dict[str, str]]:
    sites = _sites(profile)
    worst = sites[0]
    massive = [state for state in profile.hidden_states if state.massive]
    largest = max(profile.hidden_states, key=lambda state: state.max)
    tokens = {token.id for token in profile.spike_tokens}
    return [
        {"name": "Largest ratio", "value": figure(worst.ratio), "note": worst.name},
        {
            "name": "Inputs with ratio ≥ 20",
            "value": f"{sum(site.ratio >= 20 for site in sites)} of {len(sites)}",
            "note": "tensors that feed linears",
        },
        {"name": "Spike tokens", "value": str(len(tokens)), "note": "different ones, BOS included"},
        {
            "name": "Massive activations",
            "value": f"{len(massive)} of {len(profile.hidden_states)} layers",
            "note": f"largest {figure(largest.max)} after layer {largest.layer}",
        },
    ]


def _sites(profile: Profile) -> list[ModuleSpikes]:
    """Returns one entry per input tensor: linears that share one have the same figures."""
    return [spikes for spikes in profile.modules if spikes.name == spikes.site]


def _site_plots(profile: Profile) -> list[dict[str, Any]]:
    readers: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, dict[int, list[ModuleSpikes]]] = defaultdict(lambda: defaultdict(list))
    for spikes in profile.modules:
        readers[_leaf(spikes.site)].add(_leaf(spikes.name))
        layer = _LAYER.search(spikes.site)
        if spikes.name == spikes.site and layer is not None:
            kinds[_leaf(spikes.site)][int(layer[1])].append(spikes)
    order = sorted(kinds, key=lambda kind: _kind_rank(kind, profile))
    return [_site_plot(kind, readers[kind], kinds[kind]) for kind in order]


def _kind_rank(kind: str, profile: Profile) -> tuple[bool, int, str]:
    """Attention before the MLP, inputs before outputs, as in the layer itself."""
    usual = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
    return (kind not in usual, usual.index(kind) if kind in usual else 0, kind)


def _site_plot(kind: str, readers: set[str], layers: dict[int, list[ModuleSpikes]]) -> dict[str, Any]:
    """One kind of input; where a layer has several (experts), the largest maximum and the mean median."""
    order = sorted(layers)
    high = [max(spikes.max for spikes in layers[layer]) for layer in order]
    low = [sum(spikes.median for spikes in layers[layer]) / len(layers[layer]) for layer in order]
    names = ", ".join(sorted(readers, key=lambda name: (name != kind, name)))
    peak = order[high.index(max(high))]
    return {
        "caption": f"Input of {names}",
        "detail": f"· highest {figure(max(high))} in layer {peak}",
        "svg": max_and_median(order, high, low, "S"),
    }


def _hidden_state_plot(profile: Profile) -> dict[str, Any]:
    states = profile.hidden_states
    count = sum(state.massive for state in states)
    return {
        "caption": "Hidden state after each layer",
        "detail": f"· {count} massive values (above 100 and above 1000 medians)",
        "svg": max_and_median(
            [state.layer for state in states],
            [state.max for state in states],
            [state.median for state in states],
            "|h|",
            WIDE,
        ),
    }


def _ratio_rows(profile: Profile) -> list[dict[str, str]]:
    worst = _sites(profile)[:_RATIOS_SHOWN]
    top = math.log(max(worst[0].ratio, 1.0) + 1)
    return [
        {
            "name": spikes.name,
            "max": figure(spikes.max),
            "median": figure(spikes.median),
            "ratio": figure(spikes.ratio),
            "share": f"{100 * math.log(spikes.ratio + 1) / top:.1f}",
        }
        for spikes in worst
    ]


def _token_row(token: Any) -> dict[str, Any]:
    return {**token.model_dump(), "value": figure(token.value), "text": token.text.replace("\n", "⏎") or "∅"}


def _leaf(module: str) -> str:
    return module.rsplit(".", 1)[-1]
