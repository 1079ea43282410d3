"""Fake quantisation: the numbers that INT8 would give, computed in floating point inside the PyTorch model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from spikeexport.calibration.input_transform import NONE, InputTransform
from spikeexport.calibration.structure.sites import DecoderStructure, Site
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
    return nearest_codes(weight, scale, bits) * scale


def nearest_codes(weight: torch.Tensor, scale: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Rounds weight / scale to integers within +-(2^(bits-1) - 1), half to even: float32 [out, in]."""
    limit = 2 ** (bits - 1) - 1
    return torch.clamp(torch.round(weight.float() / scale), -limit, limit)


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

    Attributes:
        transforms: Site name -> what happens to an input before it is quantised.
        own_folds: Site name -> s [channels] of a fold that serves this input alone. It goes when the input is left
            unquantised: a weight that takes up a spike has larger steps for everything else.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: DecoderStructure,
        bits: Bits | None = None,
        transforms: Mapping[str, InputTransform] | None = None,
        own_folds: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Quantises every decoder weight to its nearest codes.

        Args:
            model: Floating point, folds applied.
            structure: Its sites.
            bits: 8 and 8 when None.
            transforms: Site name -> what happens to an input before it is quantised.
            own_folds: Site name -> s [channels] that its weights lose when the input is left unquantised.
        """
        self._model = model
        self._structure = structure
        self._bits = bits or Bits()
        self.transforms = transforms or {}
        self.own_folds = own_folds or {}
        self._weights = {
            linear: fake_quantize_weight(self._rotated_weight(site, linear), self._bits.weights)
            for site in structure.sites
            for linear in site.linears
        }

    def transform(self, site: str) -> InputTransform:
        """Returns what happens to a site's input before it is quantised."""
        return self.transforms.get(site, NONE)

    def weight(self, linear: str) -> torch.Tensor:
        """Returns the fake-quantised weight [out, in] of a linear, which reads a transformed input."""
        return self._weights[linear]

    def set_weight(self, linear: str, weight: torch.Tensor) -> None:
        """Replaces a fake-quantised weight, for example by one with error-compensated rounding."""
        self._weights[linear] = weight

    def weight_without_own_fold(self, site: Site, linear: str) -> torch.Tensor | None:
        """Returns the weight [out, in] that is rounded when the site's input stays unquantised, float32.

        It has lost the site's own fold and is not rotated; None where there is neither, and nothing to round again.
        """
        s = self.own_folds.get(site.name)
        if s is not None:
            return self._float_weight(linear) / s
        return None if self.transform(site.name).rotation is None else self._float_weight(linear)

    def left_out_weight(self, site: Site, linear: str) -> torch.Tensor:
        """Returns the weight [out, in] on its grid as it is when the site's input stays unquantised.

        It reads the input as the folded model has it.
        """
        weight = self.weight_without_own_fold(site, linear)
        if weight is None:
            return self._weights[linear]
        rounded = fake_quantize_weight(weight, self._bits.weights)
        s = self.own_folds.get(site.name)
        return rounded if s is None else rounded * s

    @contextlib.contextmanager
    def active(
        self,
        scales: Mapping[str, float | None],
        keep_weights: frozenset[str] = frozenset(),
    ) -> Iterator[None]:
        """While active, sites in `scales` are quantised and every decoder weight is on its INT8 grid.

        Args:
            scales: Site name -> static scale, or None for a dynamic scale per token. Sites left out keep their
                floating-point input (W8A16).
            keep_weights: Linears whose weight stays floating point too.
        """
        modules = {linear: self._model.get_submodule(linear) for linear in self._structure.linears}
        try:
            for site in self._structure.sites:
                quantised = site.name in scales
                transform = self.transform(site.name) if quantised else NONE
                read = self._quantize_input(scales[site.name], transform) if quantised else transform
                for linear in site.linears:
                    if linear not in keep_weights:
                        weight = self._weights[linear] if quantised else self.left_out_weight(site, linear)
                        modules[linear].forward = _forward(modules[linear], weight, read, transform.shift)
            yield
        finally:
            for module in modules.values():
                # Linears of `keep_weights` were never given a forward of their own.
                if "forward" in vars(module):
                    del module.forward

    def _rotated_weight(self, site: Site, linear: str) -> torch.Tensor:
        return self.transform(site.name).rotate(self._float_weight(linear))

    def _float_weight(self, linear: str) -> torch.Tensor:
        return self._model.get_submodule(linear).weight.detach().float()  # type: ignore[operator, union-attr]

    def _quantize_input(self, scale: float | None, transform: InputTransform):
        bits = self._bits.activations
        last: list[tuple[torch.Tensor, torch.Tensor]] = []

        def quantize(x: torch.Tensor) -> torch.Tensor:
            if last and last[0][0] is x:
                return last[0][1]
            ready = transform(x)
            quantized = fake_quantize_input(ready, token_scale(ready, bits) if scale is None else scale, bits)
            last[:] = [(x, quantized)]
            return quantized

        return quantize


def _forward(module: nn.Module, weight: torch.Tensor, read, shift: torch.Tensor | None):
    bias = module.bias
    if shift is not None:
        # What was taken off comes back through the INT8 weight.
        bias = F.linear(shift, weight, bias)  # type: ignore[arg-type]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.linear(read(x), weight, bias)  # type: ignore[arg-type]

    return forward
