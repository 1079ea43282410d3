"""What mobius-onnx gets wrong or lacks about a model family, corrected on our side.

A file holds the corrections of one family or feature; the table below says which apply to which `model_type` of
transformers. A family that is not in it is taken from mobius as it is.
"""

from __future__ import annotations

from typing import Any

from spikeexport.graphs.families.biases import DECLARED_BIASES
from spikeexport.graphs.families.cohere import COHERE, COHERE2
from spikeexport.graphs.families.correction import Correction
from spikeexport.graphs.families.gemma3 import GEMMA3
from spikeexport.graphs.families.mixtures import DENSE_LAYERS, GUARDED_EXPERTS
from spikeexport.graphs.families.olmoe import CLIPPED_QKV
from spikeexport.graphs.families.stablelm import STABLELM

CORRECTIONS: dict[str, tuple[Correction, ...]] = {
    "llama": (DECLARED_BIASES,),
    "smollm3": (DECLARED_BIASES,),
    "granite": (DECLARED_BIASES,),
    "gemma3_text": (GEMMA3,),
    "stablelm": (STABLELM,),
    "cohere": (COHERE,),
    "cohere2": (COHERE2,),
    "mixtral": (GUARDED_EXPERTS,),
    "qwen2_moe": (GUARDED_EXPERTS, DENSE_LAYERS),
    "qwen3_moe": (GUARDED_EXPERTS, DENSE_LAYERS),
    "olmoe": (GUARDED_EXPERTS, CLIPPED_QKV),
    "granitemoe": (GUARDED_EXPERTS,),
}
"""model_type -> corrections, applied in order."""


def corrected_config(architecture: Any, hf_config: Any) -> Any:
    """Returns mobius's architecture configuration with every correction for the model's type applied."""
    for correction in CORRECTIONS.get(hf_config.model_type, ()):
        if correction.config is not None:
            architecture = correction.config(architecture, hf_config)
    return architecture


def correct_module(module: Any, architecture: Any, hf_config: Any) -> None:
    """Changes mobius's module in place as the model's type needs, before its graph is built."""
    for correction in CORRECTIONS.get(hf_config.model_type, ()):
        if correction.module is not None:
            correction.module(module, architecture, hf_config)


def corrected_weights(state: dict[str, Any], hf_config: Any) -> dict[str, Any]:
    """Returns the weights under the names of the corrected module."""
    for correction in CORRECTIONS.get(hf_config.model_type, ()):
        if correction.weights is not None:
            state = correction.weights(state, hf_config)
    return state
