"""Tiny Llamas of unlike shapes, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from spikeexport.calibration.checkpoint import Checkpoint, open_checkpoint

from tests.tiny_models import tiny_llama

VARIANTS = {
    "grouped": {},
    "multi-query tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "full heads": {"num_key_value_heads": 4, "num_hidden_layers": 2},
    "odd head_dim": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 18, "hidden_size": 60},
    "attention bias": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "odd sizes": {"intermediate_size": 97, "hidden_size": 44, "head_dim": 10, "vocab_size": 391},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.fixture(scope="session")
def llama_variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Opens a tiny Llama by its name in VARIANTS."""
    opened: dict[str, Checkpoint] = {}

    def open_variant(name: str) -> Checkpoint:
        if name not in opened:
            folder: Path = tmp_path_factory.mktemp("llama") / "model"
            opened[name] = open_checkpoint(tiny_llama(folder, **VARIANTS[name]))
        return opened[name]

    return open_variant


@pytest.fixture(scope="session")
def grouped(llama_variant: Callable[[str], Checkpoint]) -> Checkpoint:
    """The tiny Llama with grouped-query attention."""
    return llama_variant("grouped")
