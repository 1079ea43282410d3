"""Biases that a configuration declares under Hugging Face's names."""

from __future__ import annotations

import dataclasses
from typing import Any

from spikeexport.graphs.families.correction import Correction


def _with_declared_biases(architecture: Any, hf_config: Any) -> Any:
    return dataclasses.replace(architecture, mlp_bias=bool(getattr(hf_config, "mlp_bias", False)))


DECLARED_BIASES = Correction(config=_with_declared_biases)
"""`mlp_bias` as Hugging Face declares it; mobius reads other names for it."""
