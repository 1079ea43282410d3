"""From a .gguf file to a Hugging Face folder with FP32 safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.calibration.checkpoint.architectures import require_known
from spikeexport.calibration.checkpoint.gguf_header import GgufHeader
from spikeexport.calibration.checkpoint.gguf_rotary import scale_rotary
from spikeexport.calibration.checkpoint.gguf_tensors import GgufTensors
from spikeexport.calibration.checkpoint.loading_report import require_complete
from spikeexport.calibration.checkpoint.quiet import quiet_transformers
from spikeexport.calibration.checkpoint.safetensors_writer import write_float32_checkpoint
from spikeexport.calibration.foundation.errors import CheckpointError, one_line
from spikeexport.calibration.foundation.progress import progress_bar, say

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

CONVERTER_VERSION = 2
"""Raise it when the same file converts to something else, so that older conversions are not used."""


def convert_gguf(file: Path, header: GgufHeader, folder: Path) -> None:
    """Writes configuration, tokenizer and FP32 weights of `file` into the new folder `folder`.

    The weights equal transformers' own `from_pretrained(..., gguf_file=...)` bit for bit; unlike there, one tensor
    at a time is in memory, wherever the architecture maps them one to one.

    Raises:
        CheckpointError: The architecture is unknown, or the file lacks something that it needs.
    """
    folder.mkdir()
    say(f"Reading configuration and tokenizer of {file.name}…")
    config = _read_config(file)
    _save_tokenizer(file, folder)
    with quiet_transformers():
        tensors = GgufTensors(file, header, config)
    scale_rotary(config, tensors, file)
    _save_config(config, folder)
    if tensors.shapes is None:
        _convert_at_once(file, folder)
        return
    with progress_bar(f"Converting {file.name}", len(tensors.shapes)) as advance:

        def read(name: str) -> np.ndarray:
            advance()
            return tensors.read(name)

        write_float32_checkpoint(folder, tensors.shapes, read)


def _read_config(file: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:
        raise _unusable(file, "configuration", error) from error
    require_known(config.model_type, str(file))
    return config


def _save_config(config: PretrainedConfig, folder: Path) -> None:
    from transformers import GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.dtype = "float32"
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _save_tokenizer(file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            tokenizer.save_pretrained(folder)
    except Exception as error:
        raise _unusable(file, "tokenizer", error) from error


def _convert_at_once(file: Path, folder: Path) -> None:
    """Lets transformers load the whole model: the road for architectures that merge tensors (experts)."""
    import torch
    from transformers import AutoModelForCausalLM

    with progress_bar(f"Converting {file.name} as a whole", 2) as advance, quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise _unusable(file, "weights", error) from error
        model, report = loaded
        require_complete(file, report)
        advance()
        _save_dequantized(model, folder)
        advance()


def _save_dequantized(model: Any, folder: Path) -> None:
    """Saves what was a GGUF model as an ordinary one: its tensors are plain FP32 by now."""
    model.hf_quantizer = None
    # What was recorded while loading belongs to GGUF's layout; without it the architecture's own names are written.
    model._weight_conversions = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    config = (folder / "config.json").read_bytes()
    model.save_pretrained(folder, max_shard_size="512MB")
    (folder / "config.json").write_bytes(config)


def _unusable(file: Path, what: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file}: its {what} cannot be read ({type(error).__name__}: {one_line(error, 200)}): check the file, or give "
        "the model's safetensors folder."
    )
