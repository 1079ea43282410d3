"""Mixtures of experts as ordinary linears: transformers keeps all experts of a layer in two 3-D parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from spikeexport.calibration.structure.expert_names import ExpertNames, expert_names
from torch import nn


@dataclass(frozen=True)
class Routed:
    """Which tokens of a call an expert computes.

    Attributes:
        tokens: int64 [n], numbers of the tokens in the flattened batch.
        weights: float [n], what the expert's output is multiplied with.
        total: Tokens of the call.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    total: int


class Expert(nn.Module):
    """down(act(gate(x)) * up(x)).

    Attributes:
        routed: The tokens of the call that runs now, for hooks; None while all experts see all tokens.
    """

    def __init__(self, names: ExpertNames, gate_up: torch.Tensor, down: torch.Tensor, act: nn.Module) -> None:
        """Takes views of the fused parameters: gate_up [2 * intermediate, hidden], down [hidden, intermediate]."""
        super().__init__()
        gate, up = gate_up.chunk(2)
        self._names = names
        self.add_module(names.gate, _linear(gate))
        self.add_module(names.up, _linear(up))
        self.add_module(names.down, _linear(down))
        self.act_fn = act
        self.routed: Routed | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the expert's output [n, hidden] for x [n, hidden]."""
        gate, up, down = (getattr(self, name) for name in (self._names.gate, self._names.up, self._names.down))
        return down(self.act_fn(gate(x)) * up(x))


class SeparateExperts(nn.ModuleList):
    """The experts of one layer, each with linears of its own; computes what the fused module computed."""

    see_all_tokens = False

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Sums each token's chosen experts.

        Args:
            hidden_states: float [tokens, hidden].
            top_k_index: int64 [tokens, k].
            top_k_weights: float [tokens, k].

        Returns:
            float [tokens, hidden].
        """
        result = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self):
            if self.see_all_tokens:
                expert(hidden_states)
            token, place = torch.where(top_k_index == index)
            if not len(token):
                continue
            weights = top_k_weights[token, place]
            expert.routed = Routed(token, weights, len(hidden_states))  # type: ignore[assignment]
            part = expert(hidden_states[token]) * weights[:, None]
            result.index_add_(0, token, part.to(result.dtype))
        return result


def separate_experts(model: nn.Module, model_type: str) -> None:
    """Replaces every fused experts module by `SeparateExperts` under the checkpoint's names, in place.

    Weights become views of the fused parameters, so that nothing is copied. Modules of another form (biases,
    transposed or interleaved weights) stay as they are.
    """
    names = expert_names(model_type)
    for path, module in list(model.named_modules()):
        if not _is_fused(module):
            continue
        block_path, _, name = path.rpartition(".")
        setattr(model.get_submodule(block_path), name, _separated(module, names))
        layer_path, _, block_name = block_path.rpartition(".")
        if block_name != names.block:
            _rename(model.get_submodule(layer_path), block_name, names.block)


@contextlib.contextmanager
def all_experts_see_all_tokens(model: nn.Module) -> Iterator[None]:
    """While active, every expert also runs on every token, without any effect on the result."""
    mixtures = [module for module in model.modules() if isinstance(module, SeparateExperts)]
    try:
        for mixture in mixtures:
            mixture.see_all_tokens = True
        yield
    finally:
        for mixture in mixtures:
            mixture.see_all_tokens = False


def expert_paths(model: nn.Module) -> tuple[str, ...]:
    """Returns the module paths of all separate experts."""
    return tuple(path for path, module in model.named_modules() if isinstance(module, Expert))


def _is_fused(module: nn.Module) -> bool:
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    return (
        all(isinstance(weight, nn.Parameter) and weight.ndim == 3 for weight in (gate_up, down))
        and hasattr(module, "act_fn")
        and bool(getattr(module, "has_gate", False) and getattr(module, "is_concatenated", False))
        and not any(getattr(module, name, True) for name in ("has_bias", "is_transposed", "has_post_expert_norm"))
    )


def _separated(module: Any, names: ExpertNames) -> SeparateExperts:
    return SeparateExperts(
        Expert(names, gate_up, down, module.act_fn)
        for gate_up, down in zip(module.gate_up_proj.data, module.down_proj.data, strict=True)
    )


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _rename(layer: nn.Module, old: str, new: str) -> None:
    """Gives a child another module path; the layer's own code still finds it under the old attribute."""
    layer._modules = {new if name == old else name: child for name, child in layer._modules.items()}
    layer.__dict__[old] = layer._modules[new]
