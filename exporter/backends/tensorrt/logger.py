"""The log of a native builder, kept in memory: its errors become messages and its layer list becomes the truth."""

from __future__ import annotations

from types import ModuleType
from typing import Any

_KEPT_PREFIXES = ("Layers:",)


class BuildLog:
    """What the builder said.

    Attributes:
        errors: Messages of severity error or worse, in order.
        warnings: Messages of severity warning.
        reports: The verbose messages that reports are read from.
        logger: The native logger to hand to the library; it must outlive the objects made with it.
    """

    def __init__(self, module: ModuleType) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.reports: list[str] = []
        self.logger = _native_logger(module, self)

    def record(self, severity: int, message: str) -> None:
        """Files one message by severity (TensorRT: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose)."""
        if severity <= 1:
            self.errors.append(message)
        elif severity == 2:
            self.warnings.append(message)
        elif message.startswith(_KEPT_PREFIXES):
            self.reports.append(message)

    def first_error(self) -> str:
        """Returns the first error on one line, which names the cause; later ones follow from it."""
        return " ".join(self.errors[0].split()) if self.errors else "no error was logged"


def _native_logger(module: ModuleType, log: BuildLog) -> Any:
    class Forward(module.ILogger):  # type: ignore[name-defined, misc]
        """Hands every message to the log."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Receives one message; called from native threads."""
            log.record(int(severity), message)

    return Forward()
