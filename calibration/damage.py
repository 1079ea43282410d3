"""Local damage: how far quantising one input alone moves what its linears put out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import torch
from spikeexport.calibration.fakequant import FakeQuantizer, fake_quantize_input
from spikeexport.calibration.forward import KeyValues, Lead, run_windows
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.observe import routed_tokens, site_hooks
from spikeexport.calibration.structure.experts import Routed
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn
from torch.nn import functional as F

_WRITES_TO_RESIDUAL = frozenset({"attention_output", "down"})


def local_damage(
    model: nn.Module,
    structure: DecoderStructure,
    quantizer: FakeQuantizer,
    scales: Mapping[str, float],
    windows: np.ndarray,
    lead: Lead,
    *,
    key_values: KeyValues | None = None,
    shifts: Mapping[str, torch.Tensor] | None = None,
    batch: int = 4,
) -> dict[str, float]:
    """Measures each site's relative error energy in one floating-point pass.

    For linears that write to the residual stream the error of a token is |dy|^2 / |h|^2 with h the stream after the
    layer; for the others |dy|^2 / |y|^2. dy is what quantising the input and the weight of this site alone changes.

    Args:
        model: Floating point (folds applied), no fake quantisation active.
        structure: Its sites.
        quantizer: Holds the fake-quantised weights.
        scales: Site name -> static scale.
        windows: int64 [n, L], best ones that the scales were not taken from.
        lead: What stands before each window.
        key_values: The prefix's cache when already known.
        shifts: Site name -> what is taken off an input before it is quantised.
        batch: Windows per call.

    Returns:
        Site name -> mean over tokens, summed over the site's linears.
    """
    meter = _Meter(model, structure, quantizer, scales, shifts or {})
    with (
        site_hooks(model, structure.sites, meter.on_input),
        meter.layer_hooks(),
        progress_bar("Measuring what each input's quantisation does", len(windows)) as advance,
    ):
        for rows, _ in run_windows(model, windows, lead, batch=batch, key_values=key_values, body_only=True):
            advance(rows.stop - rows.start)
    return meter.result()


class _Meter:
    def __init__(
        self,
        model: nn.Module,
        structure: DecoderStructure,
        quantizer: FakeQuantizer,
        scales: Mapping[str, float],
        shifts: Mapping[str, torch.Tensor],
    ) -> None:
        self._model = model
        self._structure = structure
        self._quantizer = quantizer
        self._scales = scales
        self._shifts = shifts
        self._sum = dict.fromkeys((site.name for site in structure.sites), 0.0)
        self._tokens = dict.fromkeys(self._sum, 0)
        self._pending: dict[int, list[tuple[str, torch.Tensor]]] = {}

    def on_input(self, site: Site, x: torch.Tensor) -> None:
        shift = self._shifts.get(site.name, torch.zeros(()))
        quantized = fake_quantize_input(x - shift, self._scales[site.name])
        for linear in site.linears:
            module = self._model.get_submodule(linear)
            y = F.linear(x, module.weight)  # type: ignore[arg-type]
            wanted = y if site.name not in self._shifts else F.linear(x - shift, module.weight)  # type: ignore[arg-type]
            error = _energy(F.linear(quantized, self._quantizer.weight(linear)) - wanted)
            if site.role in _WRITES_TO_RESIDUAL:
                error = _over_all_tokens(error, routed_tokens(self._model, site))
                self._pending.setdefault(site.layer, []).append((site.name, error))
            else:
                self._add(site.name, error, _energy(y))

    @contextlib.contextmanager
    def layer_hooks(self):
        with contextlib.ExitStack() as stack:
            for layer, path in enumerate(self._structure.layers):

                def hook(_module: nn.Module, _args: tuple, output, layer: int = layer) -> None:
                    hidden = _energy(output[0] if isinstance(output, tuple) else output)
                    for site, error in self._pending.pop(layer, []):
                        self._add(site, error.reshape(hidden.shape), hidden)

                stack.callback(self._model.get_submodule(path).register_forward_hook(hook).remove)
            yield

    def _add(self, site: str, error: torch.Tensor, against: torch.Tensor) -> None:
        self._sum[site] += float((error / against.clamp_min(1e-30)).sum())
        self._tokens[site] += error.numel()

    def result(self) -> dict[str, float]:
        # Every token counts, also those that never reach an expert: its quantisation does nothing to them.
        tokens = max(1.0, *(self._tokens[site.name] / len(site.linears) for site in self._structure.sites))
        return {name: total / tokens for name, total in self._sum.items()}


def _over_all_tokens(error: torch.Tensor, routed: Routed | None) -> torch.Tensor:
    """Spreads an expert's error energies [n] over the tokens of the call, weighted as its output is."""
    if routed is None:
        return error
    spread = error.new_zeros(routed.total)
    spread[routed.tokens] = error * routed.weights.float().pow(2)
    return spread


def _energy(x: torch.Tensor) -> torch.Tensor:
    return x.float().pow(2).sum(-1)
