"""Gemma 3: full and sliding layers rotate by parameters of their own, and queries have a scale of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.families.correction import Correction


def _with_rope_by_layer_type(architecture: Any, hf_config: Any) -> Any:
    parameters = hf_config.rope_parameters
    full, sliding = parameters["full_attention"], parameters["sliding_attention"]
    if sliding["rope_type"] != "default":
        raise GraphError(
            f"The sliding layers' rope_type is {sliding['rope_type']!r}; only 'default' is supported there."
        )
    return dataclasses.replace(
        architecture,
        rope_type=full["rope_type"],
        rope_theta=full["rope_theta"],
        rope_scaling=dict(full),
        rope_local_base_freq=sliding["rope_theta"],
    )


def _query_scale(module: Any, architecture: Any, hf_config: Any) -> None:
    for layer in module.model.layers:
        layer.self_attn.scaling = hf_config.query_pre_attn_scalar**-0.5


GEMMA3 = Correction(config=_with_rope_by_layer_type, module=_query_scale)
"""transformers 5 keeps rope parameters by layer type, where mobius finds one base; it scales by head_dim alone."""
