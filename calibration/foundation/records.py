"""Data between stages: frozen records of plain values, saved as JSON that is read back strictly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from spikeexport.calibration.foundation.errors import PlanError, SpikeExportError, one_line
from spikeexport.calibration.foundation.files import write_text

R = TypeVar("R", bound="Record")
A = TypeVar("A", bound="Artifact")


class Record(BaseModel):
    """A frozen value that refuses unknown fields and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Artifact(Record):
    """A record with a file of its own, marked with what it is and the version of its layout."""

    kind: str = ""
    schema_version: int = 0
    KIND: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    def __init__(self, **data: Any) -> None:
        data.setdefault("kind", self.KIND)
        data.setdefault("schema_version", self.SCHEMA)
        super().__init__(**data)

    def to_json(self) -> str:
        """Returns the artifact as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """Returns the SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes the artifact to `path` atomically."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls: type[A], path: Path) -> A:
        """Reads an artifact strictly.

        Raises:
            PlanError: The file is missing, is not JSON, is another kind or version, or has a wrong field; the
                message names the field's path.
        """
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls: type[A], data: Any, where: str) -> A:
        """Validates plain values read from `where` (used in messages) as this artifact.

        Raises:
            PlanError: As for `load`.
        """
        if not isinstance(data, dict) or data.get("kind") != cls.KIND:
            found = data.get("kind") if isinstance(data, dict) else type(data).__name__
            raise PlanError(f"{where} is not a {cls.KIND} file (kind: found {found!r}, expected {cls.KIND!r}).")
        if data.get("schema_version") != cls.SCHEMA:
            raise PlanError(
                f"{where} has schema_version {data.get('schema_version')!r}; this version reads {cls.SCHEMA}: "
                "write it again with the installed spikeexport."
            )
        try:
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "(top level)"
            raise PlanError(
                f"{where}: field {field}: {first['msg']} (found {one_line(first['input'], 80)})."
            ) from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        SpikeExportError: The file is missing or is not valid JSON; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpikeExportError(f"{path} does not exist: check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpikeExportError(f"Cannot read {path} as text: {one_line(error)}.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpikeExportError(f"{path} is not valid JSON (line {error.lineno}: {error.msg}).") from error
