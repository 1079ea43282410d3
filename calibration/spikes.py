"""Activation spikes: the paper's ratio, the tokens behind them, massive activations (arXiv 2405.14428, 2402.17762)."""

from __future__ import annotations

import numpy as np
import torch
from spikeexport.calibration.records.profile import LayerActivations, ModuleSpikes, SpikeToken
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn

SPIKE_FACTOR = 64.0
"""A token is a spike when its absmax exceeds this many medians (arXiv 2410.05265, section 4)."""

MASSIVE_VALUE = 100.0
MASSIVE_FACTOR = 1000.0


def lower_median(values: np.ndarray) -> np.ndarray:
    """Returns the lower median over the last axis: element (n - 1) // 2 of the sorted values, as torch.median does.

    NaN (tokens that do not reach an expert) is left out; a row of NaN gives NaN.
    """
    if np.isnan(values).any():
        count = np.isfinite(values).sum(axis=-1, keepdims=True)
        return np.take_along_axis(np.sort(values, axis=-1), np.maximum(count - 1, 0) // 2, axis=-1)[..., 0]
    middle = (values.shape[-1] - 1) // 2
    return np.partition(values, middle, axis=-1)[..., middle]


def spike_ratio(token_absmax: np.ndarray) -> float:
    """Returns r = mean over samples of max_t S / lower-median_t S for S [samples, tokens].

    The mean of each sample's own ratio, not the ratio of pooled values. A sample whose median is 0 (dead input) has
    ratio 1 when its maximum is 0 too, and is otherwise measured against the smallest positive float32. NaN (tokens
    that do not reach an expert) is left out, and so are samples of it; where no token is left the ratio is 1.
    """
    token_absmax = token_absmax[np.isfinite(token_absmax).any(axis=-1)]
    if not len(token_absmax):
        return 1.0
    high = np.nanmax(token_absmax, axis=-1).astype(np.float64)
    middle = lower_median(token_absmax).astype(np.float64)
    tiny = float(np.finfo(np.float32).tiny)
    ratios = np.where(high == 0, 1.0, high / np.maximum(middle, tiny))
    return float(ratios.mean())


def module_spikes(structure: DecoderStructure, statistics: dict[str, SiteStatistics]) -> tuple[ModuleSpikes, ...]:
    """Returns the spikes of every decoder linear, sorted by ratio, largest first."""
    found = []
    for site in structure.sites:
        absmax = statistics[site.name].token_absmax
        ratio = spike_ratio(absmax)
        seen = absmax[np.isfinite(absmax).any(axis=-1)]
        high, middle = (float(np.nanmax(seen)), float(lower_median(seen).mean())) if len(seen) else (0.0, 0.0)
        tokens = statistics[site.name].tokens_seen if site.expert else None
        found += [
            ModuleSpikes(name=linear, site=site.name, max=high, median=middle, ratio=ratio, tokens=tokens)
            for linear in site.linears
        ]
    return tuple(sorted(found, key=lambda spikes: -spikes.ratio))


def spike_mask(token_absmax: np.ndarray, factor: float = SPIKE_FACTOR) -> np.ndarray:
    """Returns which tokens are spikes: S > factor x the sample's lower median, bool [samples, tokens]."""
    return token_absmax > factor * lower_median(token_absmax)[..., None]


def spike_tokens(
    structure: DecoderStructure,
    statistics: dict[str, SiteStatistics],
    ids: np.ndarray,
    factor: float = SPIKE_FACTOR,
) -> tuple[SpikeToken, ...]:
    """Lists each (token id, module) pair that spikes, with its largest value, that value's position and its count.

    Args:
        structure: The model's sites; a site shared by several linears is reported under its first.
        statistics: Per site S [samples, tokens].
        ids: int64 [samples, tokens], the ids that S belongs to (inline BOS included).
        factor: How many medians make a spike.

    Returns:
        Pairs sorted by value, largest first; `text` is left empty.
    """
    found: list[SpikeToken] = []
    for site in structure.sites:
        absmax = statistics[site.name].token_absmax
        rows, columns = np.nonzero(spike_mask(absmax, factor))
        values, tokens = absmax[rows, columns], ids[rows, columns]
        for token in np.unique(tokens):
            mine = np.flatnonzero(tokens == token)
            top = mine[values[mine].argmax()]
            found.append(
                SpikeToken(
                    id=int(token),
                    text="",
                    module=site.name,
                    value=float(values[top]),
                    position=int(columns[top]),
                    count=len(mine),
                )
            )
    return tuple(sorted(found, key=lambda spike: -spike.value))


class HiddenStateWatch:
    """Forward hooks on the decoder layers that gather max |h|, median |h| and the count of massive values."""

    def __init__(self, model: nn.Module, structure: DecoderStructure) -> None:
        self._max = np.zeros(len(structure.layers))
        self._medians: list[list[float]] = [[] for _ in structure.layers]
        self._massive = np.zeros(len(structure.layers), dtype=np.int64)
        self._handles = [
            model.get_submodule(path).register_forward_hook(self._hook(index))
            for index, path in enumerate(structure.layers)
        ]

    def _hook(self, layer: int):
        def record(_module: nn.Module, _args: tuple, output: torch.Tensor | tuple) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output).detach().abs().float()
            median = float(hidden.median())
            self._max[layer] = max(self._max[layer], float(hidden.max()))
            self._medians[layer].append(median)
            limit = max(MASSIVE_VALUE, MASSIVE_FACTOR * median)
            self._massive[layer] += int((hidden >= limit).sum())

        return record

    def close(self) -> tuple[LayerActivations, ...]:
        """Removes the hooks and returns what was seen, layer by layer."""
        for handle in self._handles:
            handle.remove()
        return tuple(
            LayerActivations(
                layer=layer,
                max=float(self._max[layer]),
                median=float(np.mean(self._medians[layer])) if self._medians[layer] else 0.0,
                massive=int(self._massive[layer]),
            )
            for layer in range(len(self._max))
        )
