"""Fake quantisation: the numbers that INT8 would give, computed in floating point inside the PyTorch model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations; engines run 8 and 8, the rest is for research."""

    weights: int = 8
    activations: int = 8


def weight_scale(weight: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Returns the symmetric scale of each output channel: absmax / (2^(bits-1) - 1), float32 [out, 1].

    An output channel of zeros gets scale 1: its codes are all zero.
    """
    absmax = weight.float().abs().amax(dim=1, keepdim=True)
    scale = absmax / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fake_quantize_weight(weight: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Rounds a weight [out, in] to its INT8 grid (half to even, codes within +-(2^(bits-1) - 1)) and back."""
    scale = weight_scale(weight, bits)
    limit = 2 ** (bits - 1) - 1
    return torch.clamp(torch.round(weight.float() / scale), -limit, limit) * scale


def fake_quantize_input(x: torch.Tensor, scale: float | torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Rounds x to scale x integers in [-2^(bits-1), 2^(bits-1) - 1], half to even, and back.

    Args:
        x: Any shape.
        scale: One static scale, or one per token broadcast over the last axis.
        bits: Activation bits.
    """
    return torch.clamp(torch.round(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def token_scale(x: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Returns the dynamic per-token scale of x [.., channels]: absmax / (2^(bits-1) - 1), [.., 1]."""
    return x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / (2 ** (bits - 1) - 1)


class FakeQuantizer:
    """Switches a model between floating point and fake INT8, site by site.

    Holds one fake-quantised copy of each decoder weight (float32, as large as the decoder itself).
    """

    def __init__(self, model: nn.Module, structure: DecoderStructure, bits: Bits | None = None) -> None:
        self._model = model
        self._structure = structure
        self._bits = bits or Bits()
        self._weights = {
            linear: fake_quantize_weight(model.get_submodule(linear).weight, self._bits.weights)  # type: ignore[arg-type]
            for linear in structure.linears
        }

    def weight(self, linear: str) -> torch.Tensor:
        """Returns the fake-quantised weight [out, in] of a linear."""
        return self._weights[linear]

    def set_weight(self, linear: str, weight: torch.Tensor) -> None:
        """Replaces a fake-quantised weight, for example by one with error-compensated rounding."""
        self._weights[linear] = weight

    @contextlib.contextmanager
    def active(
        self,
        scales: Mapping[str, float | None],
        keep_weights: frozenset[str] = frozenset(),
        shifts: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[None]:
        """While active, sites in `scales` are quantised and every decoder weight is on its INT8 grid.

        Args:
            scales: Site name -> static scale, or None for a dynamic scale per token. Sites left out keep their
                floating-point input (W8A16).
            keep_weights: Linears whose weight stays floating point too.
            shifts: Site name -> z [channels], taken off before quantisation; z @ W, of the INT8 weight, gives it back.
        """
        modules = {linear: self._model.get_submodule(linear) for linear in self._structure.linears}
        try:
            for site in self._structure.sites:
                quantize = self._quantize_input(scales[site.name]) if site.name in scales else _identity
                for linear in site.linears:
                    if linear not in keep_weights:
                        shift = (shifts or {}).get(site.name) if site.name in scales else None
                        modules[linear].forward = self._forward(linear, modules[linear], quantize, shift)
            yield
        finally:
            for module in modules.values():
                # Linears of `keep_weights` were never given a forward of their own.
                if "forward" in vars(module):
                    del module.forward

    def _quantize_input(self, scale: float | None):
        bits = self._bits.activations
        last: list[tuple[torch.Tensor, torch.Tensor]] = []

        def quantize(x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
            if last and last[0][0] is x:
                return last[0][1]
            centred = x if shift is None else x - shift
            quantized = fake_quantize_input(centred, token_scale(centred, bits) if scale is None else scale, bits)
            last[:] = [(x, quantized)]
            return quantized

        return quantize

    def _forward(self, linear: str, module: nn.Module, quantize, shift: torch.Tensor | None):
        weight, bias = self._weights[linear], module.bias
        if shift is not None:
            bias = F.linear(shift, weight, bias)  # type: ignore[arg-type]
            return lambda x: F.linear(quantize(x, shift), weight, bias)

        def forward(x: torch.Tensor) -> torch.Tensor:
            return F.linear(quantize(x), weight, bias)  # type: ignore[arg-type]

        return forward


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x
