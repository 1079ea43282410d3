"""OLMoE: queries, keys and values clipped to +-clip_qkv."""

from __future__ import annotations

from typing import Any

from spikeexport.graphs.families.correction import Correction


def _clip_qkv(module: Any, architecture: Any, hf_config: Any) -> None:
    limit = hf_config.clip_qkv
    if limit is None:
        return
    for layer in module.model.layers:
        attention = layer.self_attn
        for part in (attention.q_norm, attention.k_norm, attention.v_proj):
            part.forward = _clipped(part.forward, float(limit))


def _clipped(forward: Any, limit: float) -> Any:
    def build(op: Any, x: Any) -> Any:
        y = forward(op, x)
        return op.Clip(y, op.CastLike(-limit, y), op.CastLike(limit, y))

    return build


CLIPPED_QKV = Correction(module=_clip_qkv)
