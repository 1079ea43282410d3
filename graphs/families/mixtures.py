"""Mixtures of experts: every expert is computed for every token, and a token takes what its router chose."""

from __future__ import annotations

from typing import Any

from onnxscript import nn
from spikeexport.graphs.families.correction import Correction


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


GUARDED_EXPERTS = Correction(module=_guard_experts)
DENSE_LAYERS = Correction(module=_keep_dense_layers)
"""Layers that `mlp_only_layers` and `decoder_sparse_step` leave without experts; mobius puts experts everywhere."""
