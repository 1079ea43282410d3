"""What mobius-onnx gets wrong or lacks about a model family, corrected on our side.

A family's file holds functions that are registered here by transformers' `model_type`. Each function takes mobius's
architecture configuration and the Hugging Face one and returns the corrected architecture configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spikeexport.graphs.families.biases import with_declared_biases

ConfigFix = Callable[[Any, Any], Any]

CONFIG_FIXES: dict[str, tuple[ConfigFix, ...]] = {
    "llama": (with_declared_biases,),
}
"""model_type -> corrections, applied in order."""


def corrected_config(model_type: str, architecture: Any, hf_config: Any) -> Any:
    """Returns mobius's architecture configuration with every registered correction for `model_type` applied."""
    for fix in CONFIG_FIXES.get(model_type, ()):
        architecture = fix(architecture, hf_config)
    return architecture
