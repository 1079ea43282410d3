"""Pointing lm-eval's tasks at local files: `--tasks-dir` with YAMLs of one's own, or with data of known tasks.

- `DIR/piqa.jsonl` (or .json, .csv, .parquet) stands in for the data set of lm-eval's task `piqa`: its own YAML, with
  the same fields expected. `DIR/piqa.train.jsonl` is drawn on for few-shot examples.
- `DIR/mine.yaml` is a task of one's own in lm-eval's format; relative `data_files` are looked for beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""File ending -> loader of Hugging Face datasets."""

_TRAIN = ".train"


def write_overrides(tasks_dir: Path, index: Mapping[str, Any], folder: Path) -> None:
    """Writes YAMLs into `folder` that include the tasks of `index` and name local files as their data.

    Args:
        tasks_dir: The user's folder.
        index: Name -> lm-eval's entry (`yaml_path`, `cfg`) of every known task, those of `tasks_dir` included.
        folder: Where lm-eval will find the overriding tasks.
    """
    for name, entry in index.items():
        if entry.yaml_path is None or "task" not in (entry.cfg or {}):
            continue
        own = tasks_dir.resolve() in Path(entry.yaml_path).resolve().parents
        changes = _beside(entry) if own else _replaced(tasks_dir, name, entry.cfg)
        if changes:
            text = yaml.safe_dump({"include": str(Path(entry.yaml_path).resolve()), "task": name, **changes})
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def named_files(tasks_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yields the task names that data files of `tasks_dir` stand for, each with its file."""
    for path in sorted(tasks_dir.iterdir()):
        if path.suffix in LOADERS and not path.stem.endswith(_TRAIN):
            yield path.stem, path


def _replaced(tasks_dir: Path, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A known task's data replaced by a file of its name."""
    path = dict(named_files(tasks_dir)).get(name)
    if path is None:
        return {}
    split = "test" if config.get("test_split") else "validation"
    files = {split: str(path.resolve())}
    train = path.with_name(f"{name}{_TRAIN}{path.suffix}")
    if train.is_file():
        files["train"] = str(train.resolve())
    return {
        "dataset_path": LOADERS[path.suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "test_split": "test" if split == "test" else None,
        "validation_split": "validation" if split == "validation" else None,
        "training_split": "train" if "train" in files else None,
        "fewshot_split": "train" if "train" in files else split,
    }


def _beside(entry: Any) -> dict[str, Any]:
    """The user's own task: relative data files are those beside its YAML, where they exist."""
    settings = entry.cfg.get("dataset_kwargs") or {}
    files = settings.get("data_files")
    if files is None:
        return {}
    folder = Path(entry.yaml_path).parent
    return {"dataset_kwargs": {**settings, "data_files": _resolved(files, folder)}}


def _resolved(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _resolved(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_resolved(value, folder) for value in files]
    beside = folder / str(files)
    return str(beside.resolve()) if beside.is_file() else files
