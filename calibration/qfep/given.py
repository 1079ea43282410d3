"""A prefix that the user names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.records.plan import Prefix

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint


def given_prefix(checkpoint: Checkpoint, text: str) -> Prefix | None:
    """Returns the prefix that a user wrote as "ids:1,2,3" or as text, word for word; None for "auto" and "off".

    Raises:
        UsageError: An id is not a number of the vocabulary, or the text is empty.
    """
    if text in ("auto", "off"):
        return None
    tokenizer = checkpoint.tokenizer()
    if text.startswith("ids:"):
        ids = _parse_ids(text, checkpoint.config.get_text_config().vocab_size)
    else:
        ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    if not ids:
        raise UsageError(f"--qfep {text!r} names no token: give a text, ids:1,2,3, auto or off.")
    return Prefix(ids=ids, text=tokenizer.decode(list(ids)))


def _parse_ids(text: str, vocabulary: int) -> tuple[int, ...]:
    try:
        ids = tuple(int(part) for part in text.removeprefix("ids:").split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--qfep {text}: expected numbers separated by commas, such as ids:216,260,1.") from None
    outside = [id for id in ids if not 0 <= id < vocabulary]
    if outside:
        raise UsageError(f"--qfep {text}: {outside[0]} is no id of the vocabulary (0 to {vocabulary - 1}).")
    return ids
