"""A decoder layer whose attention and MLP read one norm's output and are added together."""

from __future__ import annotations

from typing import Any

from onnxscript import nn


class ParallelLayer(nn.Module):
    """h + attention(norm(h)) + mlp(norm(h))."""

    def __init__(self, layer: Any, *, rope: bool = True) -> None:
        """Takes over the parts of one of mobius's layers; without `rope` its queries and keys are not rotated."""
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self._rope = rope

    def forward(
        self, op: Any, hidden_states: Any, attention_bias: Any, position_embeddings: Any, past_key_value: Any
    ) -> tuple[Any, Any]:
        """Builds the layer: hidden states [B, S, hidden] -> the same, and the layer's keys and values."""
        normed = self.input_layernorm(op, hidden_states)
        attended, present = self.self_attn(
            op,
            normed,
            attention_bias=attention_bias,
            position_embeddings=position_embeddings if self._rope else None,
            past_key_value=past_key_value,
        )
        return op.Add(hidden_states, op.Add(attended, self.mlp(op, normed))), present
