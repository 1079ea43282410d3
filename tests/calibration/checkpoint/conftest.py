"""Checkpoints to be damaged, one copy per test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny_models import tiny_llama


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama's folder that the test may damage."""
    return Path(shutil.copytree(tiny_llama_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def sharded_original(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in several shards; not to be written to."""
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path_factory.mktemp("models") / "sharded")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_llama_folder).save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture
def sharded(sharded_original: Path, tmp_path: Path) -> Path:
    """A copy of the sharded folder that the test may damage."""
    return Path(shutil.copytree(sharded_original, tmp_path / "sharded"))
