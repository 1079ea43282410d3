"""Text sources by name: plain text, JSON lines, datasets of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from spikeexport.calibration.foundation.errors import CalibrationError, one_line
from spikeexport.calibration.text.dataset import read_dataset

_FILE_SUFFIXES = (".txt", ".raw", ".jsonl", ".json", ".md", ".csv", ".parquet", ".gz")
_DATASET_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*){0,2}")


def read_text(source: str) -> str | list[str]:
    """Reads a text source.

    Args:
        source: A plain text file (.txt, .raw), a .jsonl file with a `text` field per line, or a dataset id
            `name[:config][:split]`.

    Returns:
        The whole text, or the documents of a .jsonl file or a dataset.

    Raises:
        CalibrationError: The source is missing, empty or malformed; a bad line is named by its number.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_jsonl(path) if path.suffix == ".jsonl" else _read_plain(path)
    if path.is_dir():
        raise CalibrationError(f"{source} is a folder: give a .txt, .raw or .jsonl file, a dataset id, or `self`.")
    if source.endswith(_FILE_SUFFIXES) or not _DATASET_ID.fullmatch(source):
        raise CalibrationError(f"{source} does not exist: give a .txt, .raw or .jsonl file, a dataset id, or `self`.")
    return read_dataset(source)


def join_documents(text: str | list[str]) -> str:
    """Returns one text: documents are joined by a newline."""
    return text if isinstance(text, str) else "\n".join(text)


def _read_plain(path: Path) -> str:
    text = _decode(path)
    if not text.strip():
        raise CalibrationError(f"{path} is empty: give a file with text.")
    return text


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it to UTF-8 plain text or .jsonl."
        ) from error
    except OSError as error:
        raise CalibrationError(f"Cannot read {path}: {one_line(error.strerror or error)}.") from error


def _read_jsonl(path: Path) -> list[str]:
    lines = _decode(path).split("\n")
    documents = [_document(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not any(document.strip() for document in documents):
        raise CalibrationError(f"{path} holds no text ({len(documents)} lines): expected a `text` field on each line.")
    return documents


def _document(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}).") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise CalibrationError(
            f"{path}, line {number}: expected an object with a string field `text`, found {one_line(found, 80)}."
        )
    return text
