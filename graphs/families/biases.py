"""Biases that a configuration declares under Hugging Face's names."""

from __future__ import annotations

import dataclasses
from typing import Any


def with_declared_biases(architecture: Any, hf_config: Any) -> Any:
    """Returns the architecture with `mlp_bias` as Hugging Face declares it; mobius reads other names for it."""
    return dataclasses.replace(architecture, mlp_bias=bool(getattr(hf_config, "mlp_bias", False)))
