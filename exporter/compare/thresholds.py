"""`--fail-above METRIC=VALUE`: the figures that a comparison may be held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spikeexport.calibration.foundation.errors import UsageError

METRICS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "perplexity_ratio": lambda data: data["perplexity"]["ratio"],
    "perplexity": lambda data: data["perplexity"]["candidate"],
    "kl": lambda data: data["kl_divergence"],
    "kl_divergence": lambda data: data["kl_divergence"],
    "kl_worst_window": lambda data: max(window["kl"] for window in data["worst_windows"]),
    "top1_disagreement": lambda data: 1 - data["top1_agreement"],
    "top5_disagreement": lambda data: 1 - data["top5_agreement"],
    "logits_max_abs": lambda data: data["logits"]["max_abs"],
    "logits_error": lambda data: noise_share(data["logits"]["snr_db"]),
    "kl_behind_prefix": lambda data: (data["behind_prefix"] or data)["kl_divergence"],
    "kl_over_noise": lambda data: data["kl_divergence"] / max(data["noise"]["kl_divergence"], _TINY),
    "worst_linear": lambda data: max(noise_share(layer["snr_db"]) for layer in data["layers"]),
}
"""Name -> how it is read from the comparison's JSON; all of them are better when smaller."""

_TINY = 1e-12


def noise_share(snr_db: float) -> float:
    """Returns noise / signal of a signal-to-noise ratio in dB."""
    return 10 ** (-snr_db / 10)


def require_measured(thresholds: Mapping[str, float], *, noise: bool, layers: bool) -> None:
    """Refuses a threshold on what is not measured.

    Raises:
        UsageError: Names the flag that is missing.
    """
    if "kl_over_noise" in thresholds and not noise:
        raise UsageError("--fail-above kl_over_noise needs the noise floor: add --noise.")
    if "worst_linear" in thresholds and not layers:
        raise UsageError("--fail-above worst_linear needs the layers: leave --no-layers out.")


def parse_thresholds(pairs: Iterable[str]) -> dict[str, float]:
    """Reads `METRIC=VALUE` pairs.

    Raises:
        UsageError: A pair is malformed or names an unknown metric; the known ones are listed.
    """
    return check_thresholds(dict(_parse_pair(pair) for pair in pairs))


def check_thresholds(thresholds: Mapping[str, float]) -> dict[str, float]:
    """Returns the thresholds when all metrics are known.

    Raises:
        UsageError: One is unknown; the known ones are listed.
    """
    for metric in thresholds:
        if metric not in METRICS:
            raise UsageError(f"Unknown metric {metric!r} for --fail-above: choose among {', '.join(METRICS)}.")
    return dict(thresholds)


def failures(data: Mapping[str, Any], thresholds: Mapping[str, float]) -> tuple[str, ...]:
    """Returns one line for each metric of the comparison that lies above its threshold."""
    if "worst_linear" in thresholds and not data["layers"]:
        raise UsageError("--fail-above worst_linear: these two subjects cannot be compared layer by layer.")
    found = {metric: METRICS[metric](data) for metric in thresholds}
    return tuple(
        f"{metric} is {found[metric]:.6g}, above {limit:g}"
        for metric, limit in thresholds.items()
        if found[metric] > limit
    )


def _parse_pair(pair: str) -> tuple[str, float]:
    metric, equals, value = pair.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if not equals or not math.isfinite(limit):
        raise UsageError(f"--fail-above {pair!r}: write METRIC=VALUE with a number, such as kl=0.05.")
    return metric.strip(), limit
