"""Damage: the KL divergence that quantising one input adds, for every input from one backward pass.

To second order, an error dy in a linear's output moves the model's predictions by KL = E[(g dy)^2] / 2, where g is the
gradient of log p(y) with respect to that output and y is drawn from the model's own predictions: the outer product of
such gradients is the Fisher information (Martens, arXiv 1412.1193, section 5). All inputs share this unit, so that an
early down_proj, whose error every later layer sees, can be weighed against a late q_proj.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch
from spikeexport.calibration.fakequant import FakeQuantizer, fake_quantize_input
from spikeexport.calibration.forward import KeyValues, Lead, run_windows
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn
from torch.nn import functional as F

_ACTIVATION_BYTES = 2 << 30
_MIN_TOKENS = 32
_COPIES = 4
"""Tensors of an input's width that a backward pass keeps for each input, roughly."""


def kl_damage(
    model: nn.Module,
    structure: DecoderStructure,
    quantizer: FakeQuantizer,
    scales: Mapping[str, float],
    windows: np.ndarray,
    lead: Lead,
    *,
    key_values: KeyValues | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Estimates how much mean KL to the floating-point model each site, alone, has more of when it is quantised.

    That is its KL with input and weight quantised, less its KL with the weight as it is where the input is left out.
    Costs about four forward passes. Windows are cut so that what a backward pass keeps stays near 2 GB.

    Args:
        model: Floating point (folds applied), no fake quantisation active. Its parameters ask for no gradient after.
        structure: Its sites.
        quantizer: Holds the fake-quantised weights, of inputs that are quantised and of those that are left out, and
            what happens to an input before it is quantised.
        scales: Site name -> static scale.
        windows: int64 [n, L], best ones that the scales were not taken from.
        lead: What stands before each window.
        key_values: The prefix's cache when already known.
        seed: Of the labels that are drawn.

    Returns:
        Site name -> nats per token, summed over the site's linears; 0.0 for an expert that no token reached, below zero
        where leaving the input out would be worse.
    """
    windows = windows[:, : _tokens(model, structure, windows.shape[1])]
    meter = _Meter(model, structure, quantizer, scales)
    labels = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    with (
        meter.hooks(),
        torch.enable_grad(),
        progress_bar("Measuring what each input's quantisation does", len(windows)) as advance,
    ):
        for _, logits in run_windows(model, windows, lead, batch=1, key_values=key_values, gradients=True):
            log_probs = F.log_softmax(logits[0].float(), dim=-1)
            drawn = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=labels).to(log_probs.device)
            log_probs.gather(-1, drawn).sum().backward()
            advance(1)
    tokens = len(windows) * (windows.shape[1] + len(lead.inline))
    return {name: float(total) / 2 / tokens for name, total in meter.sums.items()}


def _tokens(model: nn.Module, structure: DecoderStructure, wanted: int) -> int:
    """Returns how many tokens of a window a backward pass can keep."""
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    per_token = 4 * (_COPIES * sum(site.channels for site in structure.sites) + 3 * vocabulary)
    return min(wanted, max(_MIN_TOKENS, _ACTIVATION_BYTES // per_token))


class _Meter:
    """Sums (g dy)^2 over tokens, site by site: quantised, less left out."""

    def __init__(
        self,
        model: nn.Module,
        structure: DecoderStructure,
        quantizer: FakeQuantizer,
        scales: Mapping[str, float],
    ) -> None:
        self._model = model
        self._structure = structure
        self._quantizer = quantizer
        self._scales = scales
        self.sums = {site.name: torch.zeros((), dtype=torch.float64) for site in structure.sites}

    def hooks(self) -> ExitStack:
        """Returns the hooks, to be left when the windows have run."""
        stack = ExitStack()
        # Gradients start at the embeddings: no parameter asks for one.
        embeddings = self._model.get_input_embeddings()  # type: ignore[operator]
        stack.callback(embeddings.register_forward_hook(lambda _m, _a, output: output.requires_grad_(True)).remove)
        for site in self._structure.sites:
            for linear in site.linears:
                hook = self._hook(site, linear)
                stack.callback(self._model.get_submodule(linear).register_forward_hook(hook).remove)
        return stack

    def _hook(self, site: Site, linear: str):
        transform = self._quantizer.transform(site.name)
        weight, scale = self._quantizer.weight(linear), self._scales[site.name]

        def hook(module: nn.Linear, args: tuple, output: torch.Tensor) -> None:
            x = args[0].detach()
            ready = transform(x)
            # What the INT8 weight makes of the rounded input, against what the weight makes of the input.
            exact = output.detach() if module.bias is None else output.detach() - module.bias.detach()
            shifted = 0 if transform.shift is None else transform.shift.to(ready)
            quantised = F.linear(fake_quantize_input(ready, scale) + shifted, weight.to(ready.dtype)) - exact
            left_out = F.linear(x, self._quantizer.left_out_weight(site, linear).to(x.dtype)) - exact

            def on_gradient(gradient: torch.Tensor) -> None:
                for sign, change in ((1, quantised), (-1, left_out)):
                    self.sums[site.name] += sign * (gradient * change).float().sum(-1).pow(2).sum().double().cpu()

            if output.requires_grad:
                output.register_hook(on_gradient)

        return hook
