"""What transformers says about a load, turned into a refusal where anything didn't fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikeexport.calibration.foundation.errors import CheckpointError, one_line


def require_complete(source: Path, report: dict[str, Any]) -> None:
    """Refuses a load in which the configuration and the weights didn't match.

    Args:
        source: The checkpoint's folder or file, for the message.
        report: The loading info of transformers' `from_pretrained(..., output_loading_info=True)`.

    Raises:
        CheckpointError: A tensor has another shape than the configuration says, is missing or is left over; the
            message names it, what was found and what was expected.
    """
    where = f"{source}: the configuration doesn't match the weights"
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"{where}: tensor {name} has shape {list(found)}, the configuration expects {list(expected)}"
            f"{_and_more(mismatched)}; take both from the same checkpoint."
        )
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "has what the configuration doesn't expect:")):
        if names := sorted(report[key]):
            raise CheckpointError(
                f"{where}: the checkpoint {what} {names[0]}{_and_more(names)}; take both from the same checkpoint."
            )
    if errors := report.get("error_msgs"):
        raise CheckpointError(f"{where}: {one_line(errors[0] if isinstance(errors, list) else errors)}.")


def _and_more(items: list[Any]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
