"""A short hash that tells one checkpoint from another without reading all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from spikeexport.calibration.checkpoint.safetensors_header import TensorEntry

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SAMPLE_BYTES = 4096

_RELEVANT = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
)
"""What decides the function that the weights compute; bookkeeping such as library versions stays out."""


def fingerprint(config: PretrainedConfig, entries: Iterable[TensorEntry]) -> str:
    """Hashes the configuration and each tensor's name, shape, dtype, first, middle and last 4 KB.

    Returns:
        16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    text_config = config.get_text_config()
    relevant = {key: getattr(text_config, key, None) for key in _RELEVANT}
    digest.update(json.dumps(relevant, sort_keys=True, default=str).encode())
    streams: dict[Path, BinaryIO] = {}
    try:
        for entry in sorted(entries, key=lambda entry: entry.name):
            digest.update(json.dumps([entry.name, entry.dtype, entry.shape]).encode())
            if entry.file not in streams:
                streams[entry.file] = open(entry.file, "rb")  # noqa: SIM115 (closed below, all together)
            _hash_samples(digest, streams[entry.file], entry)
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()[:16]


def _hash_samples(digest: Any, stream: BinaryIO, entry: TensorEntry) -> None:
    for offset in (0, entry.size_bytes // 2, max(0, entry.size_bytes - _SAMPLE_BYTES)):
        stream.seek(entry.start + offset)
        digest.update(stream.read(min(_SAMPLE_BYTES, entry.size_bytes - offset)))
