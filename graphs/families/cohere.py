"""Cohere: pairs of neighbouring channels are rotated; Cohere2's full layers have no rope at all."""

from __future__ import annotations

import dataclasses
from typing import Any

from spikeexport.graphs.families.correction import Correction


def _neighbouring_pairs(architecture: Any, hf_config: Any) -> Any:
    return dataclasses.replace(architecture, rope_interleave=True, attn_qk_norm=False)


def _norms_by_head(module: Any, architecture: Any, hf_config: Any) -> None:
    if getattr(hf_config, "use_qk_norm", False):
        from spikeexport.graphs.families.head_norm import add_head_norms

        for layer in module.model.layers:
            add_head_norms(layer.self_attn, hf_config.layer_norm_eps)


def _rope_in_sliding_layers(module: Any, architecture: Any, hf_config: Any) -> None:
    from onnxscript import nn
    from spikeexport.graphs.families.parallel_block import ParallelLayer

    module.model.layers = nn.ModuleList(
        [
            ParallelLayer(layer, rope=kind == "sliding_attention")
            for layer, kind in zip(module.model.layers, hf_config.layer_types, strict=True)
        ]
    )


COHERE = Correction(config=_neighbouring_pairs, module=_norms_by_head)
COHERE2 = Correction(config=_neighbouring_pairs, module=_rope_in_sliding_layers)
