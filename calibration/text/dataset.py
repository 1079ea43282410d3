"""Text from a dataset of the Hugging Face hub, through the optional `datasets` package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spikeexport.calibration.foundation.errors import CalibrationError, one_line
from spikeexport.calibration.foundation.progress import say

MAX_CHARACTERS = 20_000_000
"""Characters read from a dataset at most: enough for any calibration, and streamed so that no more is fetched."""

_USUAL_SPLITS = ("train", "validation", "valid", "dev", "test")


def read_dataset(source: str) -> list[str]:
    """Reads the `text` column of `name[:config][:split]`, streamed.

    The split is `train` unless given. One word behind the name is a split where it is a usual name of one
    (`corpus:validation`), else a configuration.

    Raises:
        CalibrationError: The package is missing, the dataset can't be reached, or it has no `text` column.
    """
    name, config, split = _parse(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CalibrationError(
            f"{source} is no file, and reading it as a dataset needs the `datasets` package: `pip install datasets`, "
            "or give a .txt, .raw or .jsonl file, or `self`."
        ) from error
    say(f"Reading dataset {source}…")
    try:
        return _collect(load_dataset(name, config, split=split, streaming=True), source)
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"Dataset {source} cannot be read ({type(error).__name__}: {one_line(error, 160)}): check the name "
            "(name[:config][:split]) and the network, or give a text file or `self`."
        ) from error


def _parse(source: str) -> tuple[str, str | None, str]:
    name, *rest = source.split(":")
    if len(rest) == 2:
        return name, rest[0], rest[1]
    if rest and rest[0] in _USUAL_SPLITS:
        return name, None, rest[0]
    return name, rest[0] if rest else None, "train"


def _collect(rows: Iterable[Mapping[str, object]], source: str) -> list[str]:
    documents: list[str] = []
    characters = 0
    for row in rows:
        text = row.get("text")
        if not isinstance(text, str):
            raise CalibrationError(
                f"Dataset {source} has no string column `text` (columns: {', '.join(map(str, row))})."
            )
        documents.append(text)
        characters += len(text)
        if characters >= MAX_CHARACTERS:
            break
    if not characters:
        raise CalibrationError(f"Dataset {source} holds no text.")
    return documents
