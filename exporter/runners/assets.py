"""What lies beside a written model: tokenizer, configuration, generation settings."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.records import read_json
from spikeexport.runners.prefix_logits import read_prefix_logits


class Assets:
    """The files that `export` writes beside a model; the tokenizer is loaded when it is first used.

    Attributes:
        folder: Where they are.
        prefix_ids: Ids of the model's baked prefix.
    """

    def __init__(self, folder: Path, prefix_ids: tuple[int, ...] = ()) -> None:
        """Reads the configuration.

        Raises:
            SpikeExportError: A file is missing or malformed.
        """
        self.folder = folder
        self.prefix_ids = prefix_ids
        self._config = read_json(folder / "config.json")
        self._config = self._config.get("text_config", self._config)
        settings = folder / "generation_config.json"
        self._generation = read_json(settings) if settings.exists() else {}

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer.

        Raises:
            SpikeExportError: Its files are missing or malformed.
        """
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(self.folder))
        except (OSError, ValueError) as error:
            raise SpikeExportError(
                f"{self.folder} holds no usable tokenizer ({error}): export the model again."
            ) from error

    @cached_property
    def bos_id(self) -> int | None:
        """The id to put before a text, or None where a prefix stands in its place or there is none."""
        if self.prefix_ids:
            return None
        from spikeexport.calibration.checkpoint import bos_id

        return bos_id(self.tokenizer)

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's configuration, of its text part where it has several."""
        return self._config

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        eos = self._generation.get("eos_token_id", self._config.get("eos_token_id"))
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list) else (int(eos),)

    @property
    def max_positions(self) -> int:
        """Tokens that fit behind the prefix."""
        return int(self._config.get("max_position_embeddings", 1 << 30)) - len(self.prefix_ids)

    @property
    def vocab_size(self) -> int:
        """V of the configuration."""
        return int(self._config["vocab_size"])

    @cached_property
    def prefix_logits(self) -> np.ndarray | None:
        """float32 [V] behind the prefix alone, or None where it was not stored."""
        return read_prefix_logits(self.folder) if self.prefix_ids else None
