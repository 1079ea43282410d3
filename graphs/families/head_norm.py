"""LayerNorm over each head with weights of its own, as Cohere and StableLM put behind queries and keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn


class HeadLayerNorm(nn.Module):
    """x [B, S, heads, D] -> LayerNorm over D without bias, times weight [heads, D]."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        """Declares the weight."""
        super().__init__()
        self.weight = nn.Parameter([heads, head_dim])
        # LayerNormalization takes one scale for all heads, so that each head's own comes behind it.
        self.ones = nn.Parameter([head_dim], data=ir.tensor(np.ones(head_dim, np.float32)))
        self._eps = eps

    def forward(self, op: Any, x: Any) -> Any:
        """Builds the norm."""
        normed = op.LayerNormalization(x, op.CastLike(self.ones, x), epsilon=self._eps, axis=-1)
        return op.Mul(normed, self.weight)


def add_head_norms(attention: Any, eps: float) -> None:
    """Puts norms behind the queries and keys of one of mobius's attentions."""
    attention.q_norm = HeadLayerNorm(attention.num_attention_heads, attention.head_dim, eps)
    attention.k_norm = HeadLayerNorm(attention.num_key_value_heads, attention.head_dim, eps)
