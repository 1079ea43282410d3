"""Mixtures of experts: every expert is computed for every token, and a token takes what its router chose."""

from __future__ import annotations

import re
from typing import Any

from onnxscript import nn
from spikeexport.calibration.structure.expert_names import expert_names
from spikeexport.graphs.families.correction import Correction

_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.")
_ROUTER = re.compile(r"\.mlp\.gate\.weight$")


class Mixture(nn.Module):
    """sum over experts of routing weight x expert(h), plus the shared expert where there is one.

    All experts run as plain linears, which TensorRT compiles to INT8 products one by one. What an expert makes of a
    token that did not choose it is replaced by zero, not multiplied by it: in FP16 it may be infinite.
    """

    def __init__(self, layer: Any) -> None:
        """Takes over the parts of one of mobius's mixtures."""
        super().__init__()
        self.gate = layer.gate
        self.experts = layer.experts
        self._shared = hasattr(layer, "shared_expert")
        if self._shared:
            self.shared_expert = layer.shared_expert
            self.shared_expert_gate = layer.shared_expert_gate

    def forward(self, op: Any, hidden_states: Any) -> Any:
        """Builds the mixture: [B, S, hidden] -> [B, S, hidden]."""
        weights, chosen = self.gate(op, hidden_states)  # both [B, S, k]
        zero = op.CastLike(0.0, hidden_states)
        result = None
        if self._shared:
            share = op.Sigmoid(self.shared_expert_gate(op, hidden_states))  # [B, S, 1]
            result = op.Mul(self.shared_expert(op, hidden_states), share)
        for index, expert in enumerate(self.experts):
            mine = op.Equal(chosen, op.Constant(value_int=index))
            weight = op.ReduceSum(op.Mul(weights, op.CastLike(mine, weights)), [-1], keepdims=True)  # [B, S, 1]
            reached = op.Greater(weight, zero)
            part = op.Mul(op.Where(reached, expert(op, hidden_states), zero), weight)
            result = part if result is None else op.Add(result, part)
        return result


def _guard_experts(module: Any, architecture: Any, hf_config: Any) -> None:
    for layer in module.model.layers:
        layer.mlp = Mixture(layer.mlp)


def _keep_dense_layers(module: Any, architecture: Any, hf_config: Any) -> None:
    from mobius.components import MLP

    for index, layer in enumerate(module.model.layers):
        if index in hf_config.mlp_only_layers or (index + 1) % hf_config.decoder_sparse_step:
            layer.mlp = MLP(architecture)


def _named_as_in_the_checkpoint(module: Any, architecture: Any, hf_config: Any) -> None:
    names = expert_names(hf_config.model_type)
    for layer in module.model.layers:
        if isinstance(layer.mlp, Mixture):
            layer.mlp._set_name(names.block)
            layer.mlp.gate._set_name(names.router)
            for expert in layer.mlp.experts:
                expert.gate_proj._set_name(names.gate)
                expert.up_proj._set_name(names.up)
                expert.down_proj._set_name(names.down)


def _checkpoint_names(state: dict[str, Any], hf_config: Any) -> dict[str, Any]:
    names = expert_names(hf_config.model_type)
    new = {"gate_proj": names.gate, "up_proj": names.up, "down_proj": names.down}

    def renamed(name: str) -> str:
        name = _ROUTER.sub(rf".{names.block}.{names.router}.weight", name)
        return _EXPERT.sub(lambda found: f".{names.block}.experts.{found[1]}.{new[found[2]]}.", name)

    return {renamed(name): tensor for name, tensor in state.items()}


GUARDED_EXPERTS = Correction(module=_guard_experts)
NAMED_EXPERTS = Correction(module=_named_as_in_the_checkpoint, weights=_checkpoint_names)
"""Experts and routers under the names that the checkpoint and the PyTorch model have."""
DENSE_LAYERS = Correction(module=_keep_dense_layers)
"""Layers that `mlp_only_layers` and `decoder_sparse_step` leave without experts; mobius puts experts everywhere."""
