"""A folder's config.json, read and checked before anything heavy happens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.calibration.checkpoint.architectures import require_known
from spikeexport.calibration.checkpoint.features import refuse_unsupported
from spikeexport.calibration.checkpoint.quiet import quiet_transformers
from spikeexport.calibration.foundation.errors import CheckpointError, SpikeExportError, one_line
from spikeexport.calibration.foundation.records import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_FILE = "config.json"


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Reads the configuration of the checkpoint in `folder`.

    Args:
        folder: A Hugging Face folder.
        trust_remote_code: Whether code in the folder may be run to read it.

    Raises:
        CheckpointError: config.json is missing or unreadable, its architecture is unknown or has a feature that is
            not supported, or its weights are already quantised.
    """
    values = _read_values(folder / CONFIG_FILE)
    refuse_unsupported(values, str(folder / CONFIG_FILE))
    has_code = trust_remote_code and "AutoConfig" in (values.get("auto_map") or {})
    if not has_code:
        require_known(values.get("model_type"), str(folder / CONFIG_FILE))
    if quantization := values.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: the weights are already quantised ({one_line(method, 60)}): give the original "
            "checkpoint in BF16, FP16 or FP32."
        )
    return _parse(folder, trust_remote_code)


def _read_values(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: give a Hugging Face folder (config.json, tokenizer, safetensors).")
    try:
        values = read_json(file)
    except SpikeExportError as error:
        raise CheckpointError(f"{error} Download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds a {type(values).__name__}, expected a JSON object: download it again.")
    return values


def _parse(folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} cannot be understood ({type(error).__name__}: {one_line(error, 200)}): compare it "
            "with the model's original."
        ) from error
