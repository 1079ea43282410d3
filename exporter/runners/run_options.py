"""How subjects are run: what of ONNX Runtime's and PyTorch's settings the commands expose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeexport.backends.manifest import load_manifest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.ort_provider import CPU
from spikeexport.runners.subject import built_folder, open_subject, subject_kind


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run; the defaults are the fastest ones measured.

    Attributes:
        threads: Threads of one operator; None = the physical cores that this process may use.
        spinning: Whether idle threads wait actively (ONNX Runtime).
        prepacking: Whether weights are re-laid for the kernels when loading (ONNX Runtime).
        chunk: Most prompt tokens of one step of what `build` wrote for ONNX Runtime; None = the runner's own choice.
    """

    threads: int | None = None
    spinning: bool = True
    prepacking: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuses counts below 1.

        Raises:
            UsageError: One is.
        """
        for flag, count in (("--threads", self.threads), ("--chunk", self.chunk)):
            if count is not None and count < 1:
                raise UsageError(f"{flag} {count}: give 1 or more.")


DEFAULT_RUN = RunOptions()


def open_configured(subject: str | Path, options: RunOptions = DEFAULT_RUN, provider: str = CPU) -> CausalRunner:
    """Opens any SUBJECT with settings; `provider` as for `open_subject`.

    Raises:
        UsageError: A setting that this kind of subject does not have.
        SpikeExportError: As `open_subject`.
    """
    if options == DEFAULT_RUN:
        return open_subject(subject, provider=provider)
    return open_subject(subject, provider=provider, **_for_kind(subject, options))


def _for_kind(subject: str | Path, options: RunOptions) -> dict[str, Any]:
    kind = subject_kind(subject)
    if kind == "built" and load_manifest(built_folder(subject)).backend == "onnxruntime":
        given = {"threads": options.threads, "spinning": options.spinning, "prepacking": options.prepacking}
        return given if options.chunk is None else {**given, "chunk": options.chunk}
    if options.chunk is not None:
        raise UsageError(
            f"--chunk is for what `build --backend onnxruntime` wrote, and {subject} is not: leave it out."
        )
    if kind == "onnx":
        from spikeexport.runners.ort_session import SessionSettings

        return {"settings": SessionSettings(options.threads, options.spinning, options.prepacking)}
    if kind == "built" or not (options.spinning and options.prepacking):
        raise UsageError(
            f"{subject} does not run on ONNX Runtime: leave --threads, --no-spinning, --no-prepacking out."
        )
    import torch

    torch.set_num_threads(options.threads or torch.get_num_threads())
    return {}
