"""Writes what a runner needs beside a model: tokenizer, configuration, generation settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeexport.calibration.foundation.errors import CheckpointError, one_line
from spikeexport.calibration.foundation.records import read_json
from spikeexport.calibration.records.plan import Prefix

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint

ASSET_FILES = (
    "generation_config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What lies beside a model, as far as its checkpoint has it."""

_SAMPLE = "Well, it's 3 o'clock: the train is late.\n"
_NO_BOS_IN_TEMPLATE = "{%- set bos_token = '' -%}"


def assets_name(onnx_name: str) -> str:
    """Returns the name of the assets folder that belongs to a .onnx file's name."""
    return f"{Path(onnx_name).stem}.assets"


def write_assets(checkpoint: Checkpoint, folder: Path, prefix: Prefix | None) -> None:
    """Writes the assets of a model into `folder`, which it makes.

    Where the prefix holds BOS, the written tokenizer adds none: the baked cache already has it, and chat templates see
    an empty `bos_token`.

    Args:
        checkpoint: Where the files come from.
        folder: A new folder.
        prefix: The baked prefix, or None.

    Raises:
        CheckpointError: The written tokenizer does not split text as the checkpoint's does, or still adds BOS.
    """
    from spikeexport.calibration.checkpoint import bos_id

    folder.mkdir()
    for name in ASSET_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        checkpoint.tokenizer().save_pretrained(str(folder))
    _write_json(folder / "generation_config.json", checkpoint.generation_settings())
    bos = bos_id(checkpoint)
    if prefix is not None and bos is not None and bos in prefix.ids:
        _remove_bos(folder, bos)
    _verify(checkpoint, folder, None if prefix is None else prefix.ids, bos)


def _remove_bos(folder: Path, bos: int) -> None:
    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer = read_json(file)
    tokenizer["post_processor"] = without_leading_token(tokenizer.get("post_processor"), bos)
    _write_json(file, tokenizer)
    settings = read_json(settings_file) if settings_file.exists() else {}
    if "add_bos_token" in settings or _first_id(folder) == bos:
        settings["add_bos_token"] = False
    if isinstance(settings.get("chat_template"), str):
        settings["chat_template"] = _NO_BOS_IN_TEMPLATE + settings["chat_template"]
    _write_json(settings_file, settings)
    template = folder / "chat_template.jinja"
    if template.exists():
        template.write_text(_NO_BOS_IN_TEMPLATE + template.read_text(encoding="utf-8"), encoding="utf-8")


def without_leading_token(processor: dict[str, Any] | None, token: int) -> dict[str, Any] | None:
    """Returns a post-processor of tokenizer.json that no longer puts the id `token` in front of a text.

    Args:
        processor: The `post_processor` object (a template, a sequence of processors, or another kind), or None.
        token: Id of BOS.
    """
    if processor is None:
        return None
    if processor.get("type") == "Sequence":
        kept = [without_leading_token(part, token) for part in processor["processors"]]
        return {**processor, "processors": kept}
    if processor.get("type") != "TemplateProcessing":
        return processor
    known = processor.get("special_tokens", {})
    templates = {key: _without_leading(processor[key], token, known) for key in ("single", "pair")}
    used = {piece["SpecialToken"]["id"] for pieces in templates.values() for piece in pieces if "SpecialToken" in piece}
    # onnxruntime-genai adds every BOS that is mentioned here, used or not.
    return {**processor, **templates, "special_tokens": {name: known[name] for name in known if name in used}}


def _without_leading(template: list[dict[str, Any]], token: int, known: dict[str, Any]) -> list[dict[str, Any]]:
    """Drops the special token `token` wherever it stands directly in front of a sequence."""

    def is_bos(piece: dict[str, Any]) -> bool:
        name = piece.get("SpecialToken", {}).get("id")
        return name is not None and known.get(name, {}).get("ids") == [token]

    followers = [*template[1:], {}]
    return [
        piece for piece, after in zip(template, followers, strict=True) if not (is_bos(piece) and "Sequence" in after)
    ]


def _verify(checkpoint: Checkpoint, folder: Path, prefix_ids: tuple[int, ...] | None, bos: int | None) -> None:
    written = _load(folder)
    expected = checkpoint.tokenizer()(_SAMPLE, add_special_tokens=False).input_ids
    if written(_SAMPLE, add_special_tokens=False).input_ids != expected:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer written beside the model splits text otherwise than the checkpoint's; "
            "its files in the checkpoint's folder contradict each other."
        )
    if prefix_ids is not None and bos in prefix_ids and written(_SAMPLE).input_ids[:1] == [bos] != expected[:1]:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer puts BOS (id {bos}) in front of a text in a way that cannot be switched "
            "off, but the prefix already holds it: choose a prefix without BOS (--qfep off)."
        )


def _first_id(folder: Path) -> int:
    return _load(folder)(_SAMPLE).input_ids[0]


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The tokenizer written beside the model cannot be read: {one_line(error)}.") from error


def _write_json(file: Path, value: Any) -> None:
    # Without indentation: the encoder in C does not indent, and a tokenizer has a few hundred thousand entries.
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
