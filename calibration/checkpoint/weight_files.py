"""Which .safetensors files hold a folder's weights, single or sharded, and every tensor in them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from spikeexport.calibration.checkpoint.safetensors_header import TensorEntry, read_safetensors_header
from spikeexport.calibration.foundation.errors import CheckpointError, SpikeExportError
from spikeexport.calibration.foundation.records import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Lists every tensor of the checkpoint in `folder`, by name.

    Raises:
        CheckpointError: No safetensors, only pickled weights, a missing shard, an unsafe path in the index, a
            truncated or corrupt file.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_safetensors_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _sharded_tensors(folder)
    raise _no_weights(folder)


def refuse_pickle(path: Path) -> CheckpointError:
    """Builds the refusal of pickled weights at `path` (a file or a folder), with the way to convert them."""
    folder = path if path.is_dir() else path.parent
    return CheckpointError(
        f"{path} holds pickled weights, which can run code when they are read: convert them once with "
        f"`python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}')."
        f"save_pretrained('{folder}-safetensors')\"`, copy the tokenizer files there and give that folder."
    )


def _sharded_tensors(folder: Path) -> dict[str, TensorEntry]:
    index = folder / INDEX_FILE
    weight_map = _read_weight_map(index)
    shards = {name: read_safetensors_header(_shard_path(folder, name)) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks tensor {tensor} that {index.name} places there: download the folder again."
            )
    return {name: entry for entries in shards.values() for name, entry in entries.items()}


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        data = read_json(index)
    except SpikeExportError as error:
        raise CheckpointError(f"{error} Download it again.") from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names: download it again.")
    return weight_map


def _shard_path(folder: Path, name: str) -> Path:
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if len(parts) != 1 or name in ("", ".", "..") or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{folder / INDEX_FILE} names the shard {name!r}: expected the plain name of a .safetensors file in the "
            "same folder; such an index isn't safe to follow."
        )
    if not (folder / name).is_file():
        raise CheckpointError(f"Shard {folder / name} is missing ({INDEX_FILE} names it): download it again.")
    return folder / name


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        return refuse_pickle(folder)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return CheckpointError(f"{folder} holds {', '.join(ggufs)}: give the path of the .gguf file itself.")
    other = [name for name in names if name.endswith(".safetensors")]
    found = f" (found {', '.join(other[:4])})" if other else ""
    return CheckpointError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{found}: give a Hugging Face folder with safetensors."
    )
