"""Errors that a user can act on.

Each message says what went wrong, where (layer, node, file), what was found against what was expected, and what
to do about it. The command line prints it as one line without a traceback.
"""

from __future__ import annotations


class SpikeExportError(Exception):
    """A problem that the message explains; the command line exits with 1."""

    exit_code = 1


class UsageError(SpikeExportError):
    """Arguments that contradict each other or cannot be understood; exits with 2."""

    exit_code = 2


class CheckFailed(SpikeExportError):
    """A threshold that the user asked for was not met; exits with 3."""

    exit_code = 3


class CheckpointError(SpikeExportError):
    """A checkpoint that is missing, truncated, corrupt, of an unknown architecture or inconsistent."""


class CalibrationError(SpikeExportError):
    """Calibration text or statistics that cannot be used."""


class PlanError(SpikeExportError):
    """A plan, recipe or profile that is malformed or made for another model."""


class GraphError(SpikeExportError):
    """An ONNX graph that a pass, a check or a backend cannot accept."""


class BackendError(SpikeExportError):
    """A backend that is missing, refuses the network, or compiled something else than planned."""


def one_line(text: object, limit: int = 400) -> str:
    """Returns `text` on one line, cut to `limit` characters, for use inside an error message."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
