"""StableLM: the parallel block and the norms by head of its 12B models."""

from __future__ import annotations

import re
from typing import Any

from spikeexport.graphs.families.correction import Correction

_HEAD_NORM = re.compile(r"(.*\.self_attn)\.(q|k)_layernorm\.norms\.(\d+)\.weight")


def _parallel_and_head_norms(module: Any, architecture: Any, hf_config: Any) -> None:
    if hf_config.qk_layernorm:
        from spikeexport.graphs.families.head_norm import add_head_norms

        for layer in module.model.layers:
            add_head_norms(layer.self_attn, hf_config.layer_norm_eps)
    if hf_config.use_parallel_residual:
        from onnxscript import nn
        from spikeexport.graphs.families.parallel_block import ParallelLayer

        module.model.layers = nn.ModuleList([ParallelLayer(layer) for layer in module.model.layers])


def _joined_head_norms(state: dict[str, Any], hf_config: Any) -> dict[str, Any]:
    """Stacks `q_layernorm.norms.<head>.weight` [D] to `q_norm.weight` [heads, D]."""
    import torch

    heads: dict[str, dict[int, Any]] = {}
    kept = {}
    for name, tensor in state.items():
        found = _HEAD_NORM.fullmatch(name)
        if found is None:
            kept[name] = tensor
        else:
            heads.setdefault(f"{found[1]}.{found[2]}_norm.weight", {})[int(found[3])] = tensor
    return kept | {name: torch.stack([norms[head] for head in sorted(norms)]) for name, norms in heads.items()}


STABLELM = Correction(module=_parallel_and_head_norms, weights=_joined_head_norms)
