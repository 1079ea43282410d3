"""Features of a configuration that cannot be exported, refused by name before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spikeexport.calibration.foundation.errors import CheckpointError

Values = dict[str, Any]

SUPPORTED = (
    "decoders of text with gated MLPs or mixtures; full, grouped and multi-query attention; sliding windows; "
    "default, linear, llama3, yarn and longrope rotary embeddings, partial or none"
)

_RECURRENT = ("linear_attention", "mamba", "recurrent", "conv", "gated_delta")
_ROPE = ("default", "linear", "llama3", "yarn", "longrope", "su", "proportional")


def refuse_unsupported(values: Values, where: str) -> None:
    """Refuses a configuration with a feature that has no place in the exported graph.

    Args:
        values: The contents of config.json.
        where: The file, for the message.

    Raises:
        CheckpointError: Names the feature, the field that declares it, and what is supported.
    """
    for part in (values, values.get("text_config") or {}):
        for feature, is_there in _UNSUPPORTED.items():
            if found := is_there(part):
                raise CheckpointError(f"{where}: {feature} ({found}) is not supported; supported are {SUPPORTED}.")


def _multi_head_latent(values: Values) -> str | None:
    rank = values.get("kv_lora_rank")
    return f"kv_lora_rank {rank}" if rank else None


def _linear_attention(values: Values) -> str | None:
    kinds = [str(kind) for kind in values.get("layer_types") or values.get("layers_block_type") or ()]
    found = next((kind for kind in kinds if any(word in kind for word in _RECURRENT)), None)
    if found is None and values.get("model_type") in ("mamba", "mamba2", "falcon_mamba", "rwkv"):
        found = values["model_type"]
    return f"layer type {found!r}" if found else None


def _other_modality(name: str) -> Callable[[Values], str | None]:
    return lambda values: name if values.get(name) else None


def _encoder(values: Values) -> str | None:
    return "is_encoder_decoder" if values.get("is_encoder_decoder") else None


def _rope(values: Values) -> str | None:
    for parameters in _rope_parameters(values):
        kind = parameters.get("rope_type") or parameters.get("type") or "default"
        if kind not in _ROPE:
            return f"rope_type {kind!r}"
    return None


def _rope_parameters(values: Values) -> Iterator[Values]:
    for key in ("rope_parameters", "rope_scaling"):
        parameters = values.get(key)
        if isinstance(parameters, dict):
            yield parameters
            yield from (part for part in parameters.values() if isinstance(part, dict))


_UNSUPPORTED: dict[str, Callable[[Values], str | None]] = {
    "a vision tower": _other_modality("vision_config"),
    "an audio tower": _other_modality("audio_config"),
    "an encoder beside the decoder": _encoder,
    "multi-head latent attention (MLA)": _multi_head_latent,
    "a layer with linear attention or a recurrent state": _linear_attention,
    # The frequencies would follow the longest sequence seen so far, which a graph does not remember.
    "dynamic NTK or another rotary embedding that changes with the length": _rope,
}
"""Feature -> what finds it in a configuration."""
