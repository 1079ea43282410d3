"""From what a user types to an opened checkpoint."""

from __future__ import annotations

from pathlib import Path

from spikeexport.calibration.checkpoint.checkpoint import Checkpoint
from spikeexport.calibration.checkpoint.config_file import read_config
from spikeexport.calibration.checkpoint.fingerprint import fingerprint
from spikeexport.calibration.checkpoint.gguf_cache import converted_gguf
from spikeexport.calibration.checkpoint.hub import download_checkpoint, is_hub_id
from spikeexport.calibration.checkpoint.tensor_store import TensorStore
from spikeexport.calibration.checkpoint.weight_files import PICKLE_SUFFIXES, find_tensors, refuse_pickle
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.records.model_id import ModelId


def open_checkpoint(model: str | Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Opens a model: a local Hugging Face folder with safetensors, a .gguf file or a hub id.

    Weights are not read beyond samples for the fingerprint; a .gguf file is converted once into a cache.

    Args:
        model: What the user typed.
        trust_remote_code: Whether code that comes with the checkpoint may be run.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, corrupt, pickled or of an unknown architecture.
    """
    folder, name = _locate(model, trust_remote_code)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    entries = find_tensors(folder)
    model_id = ModelId(
        name=name,
        model_type=config.model_type,
        layers=config.get_text_config().num_hidden_layers,
        fingerprint=fingerprint(config, entries.values()),
    )
    return Checkpoint(name, folder, config, model_id, TensorStore(entries), trust_remote_code)


def _locate(model: str | Path, trust_remote_code: bool) -> tuple[Path, str]:
    path = Path(model).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if path.is_file():
        return _locate_file(path), path.name
    if is_hub_id(model):
        return download_checkpoint(str(model), with_code=trust_remote_code), str(model)
    raise CheckpointError(
        f"{model} does not exist: expected a folder with safetensors, a .gguf file, or a hub id such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct."
    )


def _locate_file(file: Path) -> Path:
    suffix = file.suffix.lower()
    if suffix == ".gguf":
        return converted_gguf(file)
    if suffix in PICKLE_SUFFIXES:
        raise refuse_pickle(file)
    if suffix == ".safetensors":
        raise CheckpointError(f"{file} is one file of a checkpoint: give the folder that holds it, {file.parent}.")
    raise CheckpointError(f"{file} is no model: expected a folder with safetensors, a .gguf file or a hub id.")
