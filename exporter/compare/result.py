"""What a comparison found, as data for JSON, reports and thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from spikeexport.compare.divergence import WindowDivergence
from spikeexport.compare.generations import Generation
from spikeexport.compare.layers import LayerError, bad_alone, first_bad_layer
from spikeexport.compare.signal import SignalError, snr_db
from spikeexport.compare.site_spikes import SiteSpikes, SpikeText
from spikeexport.perplexity import mean_interval, perplexity


@dataclass(frozen=True)
class BehindPrefix:
    """The reference run behind the candidate's prefix: what is left is quantisation alone.

    Attributes:
        windows: Per window, this reference against the candidate.
    """

    windows: tuple[WindowDivergence, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "perplexity": perplexity(float(_window_means(self.windows, "reference_nll").mean())),
            "kl_divergence": _mean(self.windows, "kl"),
            "top1_agreement": _mean(self.windows, "top1"),
        }


@dataclass(frozen=True)
class NoiseFloor:
    """The candidate against itself with its norms' weights or its scales moved by about one part in a million.

    What is below this says nothing: any other right implementation differs as much.

    Attributes:
        windows: Per window, the candidate against the moved one.
        error: Of their raw logits.
        relative: Size of the perturbation.
    """

    windows: tuple[WindowDivergence, ...]
    error: SignalError
    relative: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        ratios = _window_means(self.windows, "candidate_nll") - _window_means(self.windows, "reference_nll")
        return {
            "windows": len(self.windows),
            "relative": self.relative,
            "perplexity_ratio": perplexity(float(ratios.mean())),
            "kl_divergence": _mean(self.windows, "kl"),
            "top1_agreement": _mean(self.windows, "top1"),
            "logits": _error_json(self.error),
        }


@dataclass(frozen=True)
class WorstWindow:
    """One of the windows where the predictions are furthest apart.

    Attributes:
        index: Its number among the compared windows.
        kl: Mean KL divergence, in nats.
        reference_perplexity: Under the reference.
        candidate_perplexity: Under the candidate.
        tokens: The tokens' text, in order.
        token_kl: KL divergence of the prediction of each token, in nats.
    """

    index: int
    kl: float
    reference_perplexity: float
    candidate_perplexity: float
    tokens: tuple[str, ...]
    token_kl: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "index": self.index,
            "kl": self.kl,
            "perplexity": {"reference": self.reference_perplexity, "candidate": self.candidate_perplexity},
            "text": "".join(self.tokens),
            "tokens": [[token, round(kl, 5)] for token, kl in zip(self.tokens, self.token_kl, strict=True)],
        }


@dataclass(frozen=True)
class CompareResult:
    """Candidate against reference.

    Attributes:
        candidate: Name of the subject that is judged.
        reference: Name of the subject that it should equal.
        text: Name of the text.
        seqlen: Tokens per window.
        windows: Per window, what differs.
        logits: Error of the raw logits.
        layers: Error by layer, in the order of the graph; empty where the inside was not compared.
        worst_windows: The windows furthest apart, worst first.
        behind_prefix: The same against the reference behind the candidate's prefix, or None.
        facts: What the candidate is made of (`inspect`'s object), or empty.
        seconds: Time taken.
        failures: Thresholds that were not met, one line each.
        generations: Greedy continuations of both, side by side.
        noise: The noise floor, where it was measured.
        spikes: Spikes at the inputs of the linears in the original and in the candidate.
        spike_text: A window's tokens with the spikes that they carry in the original.
    """

    candidate: str
    reference: str
    text: str
    seqlen: int
    windows: tuple[WindowDivergence, ...]
    logits: SignalError
    layers: tuple[LayerError, ...]
    worst_windows: tuple[WorstWindow, ...]
    behind_prefix: BehindPrefix | None
    facts: dict[str, Any]
    seconds: float
    failures: tuple[str, ...] = field(default=())
    generations: tuple[Generation, ...] = ()
    noise: NoiseFloor | None = None
    spikes: tuple[SiteSpikes, ...] = ()
    spike_text: SpikeText | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `compare --json` prints."""
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            "text": self.text,
            "windows": len(self.windows),
            "seqlen": self.seqlen,
            "tokens": sum(len(window.kl) for window in self.windows),
            "perplexity": self._perplexity(),
            "kl_divergence": _mean(self.windows, "kl"),
            "top1_agreement": _mean(self.windows, "top1"),
            "top5_agreement": _mean(self.windows, "top5"),
            "logits": _error_json(self.logits),
            "behind_prefix": self.behind_prefix.to_json() if self.behind_prefix else None,
            "noise": self.noise.to_json() if self.noise else None,
            "kl_by_position": self._by_position("kl"),
            "per_position": self._per_position(),
            "per_window": [_window_json(index, window) for index, window in enumerate(self.windows)],
            "generations": [generation.to_json() for generation in self.generations],
            "layers": [layer.to_json() for layer in self.layers],
            "first_bad_layer": first_bad_layer(self.layers),
            "bad_alone": list(bad_alone(self.layers)),
            "spikes": [site.to_json() for site in self.spikes],
            "spike_text": self.spike_text.to_json() if self.spike_text else None,
            "worst_windows": [window.to_json() for window in self.worst_windows],
            "candidate_facts": self.facts,
            "failures": list(self.failures),
            "seconds": self.seconds,
        }

    def _perplexity(self) -> dict[str, Any]:
        expected = _window_means(self.windows, "reference_nll")
        found = _window_means(self.windows, "candidate_nll")
        return {
            "reference": perplexity(float(expected.mean())),
            "candidate": perplexity(float(found.mean())),
            "ratio": perplexity(float((found - expected).mean())),
            "reference_interval": [perplexity(end) for end in mean_interval(expected)],
            "candidate_interval": [perplexity(end) for end in mean_interval(found)],
            # Windows differ far more from each other than the subjects do: the ratio's interval pairs them.
            "ratio_interval": [perplexity(end) for end in mean_interval(found - expected)],
        }

    def _per_position(self) -> dict[str, list[float]]:
        """Means over the windows; the first tokens are where the spikes are."""
        signal, noise = (np.sum([getattr(window, name) for window in self.windows], axis=0) for name in _SQUARES)
        return {
            "top1": self._by_position("top1"),
            "top5": self._by_position("top5"),
            "cosine": self._by_position("cosine"),
            "snr_db": [round(snr_db(*pair), 3) for pair in zip(signal.tolist(), noise.tolist(), strict=True)],
            "reference_nll": self._by_position("reference_nll"),
            "candidate_nll": self._by_position("candidate_nll"),
        }

    def _by_position(self, name: str) -> list[float]:
        means = np.mean([getattr(window, name) for window in self.windows], axis=0)
        return [round(float(value), 6) for value in means]


_SQUARES = ("signal", "noise")


def _window_json(index: int, window: WindowDivergence) -> dict[str, Any]:
    return {
        "index": index,
        "perplexity": {
            "reference": perplexity(float(window.reference_nll.mean())),
            "candidate": perplexity(float(window.candidate_nll.mean())),
        },
        "kl": float(window.kl.mean()),
        "top1": float(window.top1.mean()),
        "top5": float(window.top5.mean()),
        "cosine": float(window.cosine.mean()),
        "snr_db": window.snr_db,
    }


def _error_json(error: SignalError) -> dict[str, float]:
    return {"cosine": error.cosine, "snr_db": error.snr_db, "max_abs": error.max_abs}


def _window_means(windows: tuple[WindowDivergence, ...], name: str) -> np.ndarray:
    return np.array([getattr(window, name).mean() for window in windows])


def _mean(windows: tuple[WindowDivergence, ...], name: str) -> float:
    return float(_window_means(windows, name).mean())
