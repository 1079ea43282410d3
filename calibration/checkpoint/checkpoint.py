"""An opened checkpoint: configuration and tokenizer at hand, tensors read lazily."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.calibration.checkpoint.quiet import quiet_transformers
from spikeexport.calibration.checkpoint.tensor_store import TensorStore
from spikeexport.calibration.foundation.errors import CheckpointError, one_line
from spikeexport.calibration.records.model_id import ModelId

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, made by `open_checkpoint`.

    Attributes:
        name: What the user called it, without parent folders.
        folder: A local Hugging Face folder with config.json, tokenizer files and safetensors; for a .gguf file a
            cached conversion.
        config: The model's configuration.
        model_id: Its identity, for profiles and plans.
        store: The mapped tensors.
        trust_remote_code: Whether the user allowed code in the folder to run.
        checked: What was found in order by reading all weights, so that it is done once.
    """

    name: str
    folder: Path
    config: PretrainedConfig = field(repr=False)
    model_id: ModelId
    store: TensorStore = field(repr=False, compare=False)
    trust_remote_code: bool = False
    checked: set[str] = field(default_factory=set, repr=False, compare=False)
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def tensor_names(self) -> list[str]:
        """Returns the checkpoint's tensor names, sorted."""
        return sorted(self.store.entries)

    def read_tensor(self, name: str) -> torch.Tensor:
        """Returns one tensor in the checkpoint's dtype: a view of the mapped file, not to be written to.

        Raises:
            CheckpointError: There is no tensor of that name.
        """
        return self.store.read(name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer of the folder (loaded once).

        Raises:
            CheckpointError: The folder has no tokenizer that transformers can read.
        """
        if "tokenizer" not in self._loaded:
            self._loaded["tokenizer"] = self._load_tokenizer()
        return self._loaded["tokenizer"]

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(
                    self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
                )
        except Exception as error:
            raise CheckpointError(
                f"{self.folder} has no tokenizer that can be read ({type(error).__name__}: {one_line(error, 160)}): "
                "put the model's tokenizer files (tokenizer.json, tokenizer_config.json) there."
            ) from error

    def generation_settings(self) -> dict[str, Any]:
        """Returns the settings of generation_config.json, or those of the configuration where there is none.

        Always has `bos_token_id` (int or None), `pad_token_id` (int or None) and `eos_token_id` (list of int, the
        tokenizer's EOS included).
        """
        settings = self._read_generation_config()
        eos = settings.get("eos_token_id")
        found = [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]
        own = self.tokenizer().eos_token_id
        settings["eos_token_id"] = list(dict.fromkeys([*found, *([] if own is None else [own])]))
        for key in ("bos_token_id", "pad_token_id"):
            settings[key] = settings.get(key, getattr(self.tokenizer(), key))
        return settings

    def _read_generation_config(self) -> dict[str, Any]:
        from transformers import GenerationConfig

        try:
            if (self.folder / "generation_config.json").is_file():
                settings = GenerationConfig.from_pretrained(self.folder, local_files_only=True)
            else:
                settings = GenerationConfig.from_model_config(self.config)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder / 'generation_config.json'} cannot be read ({one_line(error, 160)}): "
                "correct or remove it."
            ) from error
        kept = settings.to_diff_dict()
        return {key: value for key, value in kept.items() if key not in ("transformers_version", "_from_model_config")}
