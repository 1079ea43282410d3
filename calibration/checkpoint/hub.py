"""Checkpoints on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from spikeexport.calibration.foundation.errors import CheckpointError, one_line
from spikeexport.calibration.foundation.progress import say

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")

_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_UNWANTED = ("*/*", "consolidated*")
"""Sub-folders and Meta's own layout hold the same weights a second time."""


def is_hub_id(model: str | Path) -> bool:
    """Whether `model` can be a hub id (`name` or `owner/name`) rather than a path."""
    text = str(model)
    has_file_suffix = text.endswith((".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".json"))
    return _HUB_ID.fullmatch(text) is not None and not has_file_suffix


def download_checkpoint(hub_id: str, *, with_code: bool = False) -> Path:
    """Fetches configuration, tokenizer and safetensors of `hub_id` into the Hugging Face cache.

    Args:
        hub_id: `owner/name`.
        with_code: Whether Python files are fetched too (trust_remote_code).

    Raises:
        CheckpointError: The hub can't be reached, or it has no such model or doesn't let the user read it.
    """
    from huggingface_hub import snapshot_download

    say(f"Fetching {hub_id} from the Hugging Face hub…")
    patterns = [*_WANTED, *(["*.py"] if with_code else [])]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=list(_UNWANTED)))
    except Exception as error:
        raise CheckpointError(
            f"{hub_id} is no local folder or file, and fetching it from the Hugging Face hub failed "
            f"({type(error).__name__}: {one_line(error, 160)}): check the name and the network, log in with "
            "`hf auth login` for a gated model, or give a local path."
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{hub_id} has no safetensors on the hub: pickled weights are not fetched; take a converted copy of the "
            "model, or the .gguf file of a GGUF repository as a local file."
        )
    return folder
