"""What the building subprocess is told and what it answers, as JSON files in a private folder."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from spikeexport.calibration.foundation.records import Artifact

ENGINE_NAME = "model.engine"
"""File name of the serialised engine in a built folder."""

RESULT_NAME = "result.json"

ReportForm: TypeAlias = Literal["log", "inspector", ""]
"""How a layer report is read: the builder's log, the inspector's JSON, or none."""


class BuildRequest(Artifact):
    """One build.

    Attributes:
        backend: Name of the flavour.
        onnx: Path of the graph.
        folder: Where the engine and the layer report go.
        targets: Compute capabilities; empty = the GPU at hand.
        max_batch: Largest batch.
        max_seq: Most tokens behind the prefix.
        timing_cache: Path, or None.
        workspace_bytes: Most scratch memory of one kernel, or None.
    """

    KIND: ClassVar[str] = "tensorrt-build-request"

    backend: str
    onnx: str
    folder: str
    targets: tuple[str, ...]
    max_batch: int
    max_seq: int
    timing_cache: str | None = None
    workspace_bytes: int | None = None


class BuildAnswer(Artifact):
    """What a build came to.

    Attributes:
        version: The library's version.
        report: File name of the layer report in the folder.
        report_form: How it is read: the builder's log or the inspector's JSON.
        seconds: Time inside the builder.
        warnings: What the library warned of, each once.
        error: Why nothing was built, or None.
        error_type: Name of the error class to raise.
    """

    KIND: ClassVar[str] = "tensorrt-build-answer"

    version: str = ""
    report: str = ""
    report_form: ReportForm = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    error_type: str = ""
