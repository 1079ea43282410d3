"""The perplexity protocol's windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.text.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, seqlen: int, windows: int | None = None
) -> np.ndarray:
    """Cuts a text into the windows that perplexity is taken on.

    The whole text is tokenised once without special tokens and cut into consecutive windows; the rest that doesn't
    fill a window is dropped.

    Args:
        tokenizer: The model's tokenizer.
        text: The whole text.
        seqlen: Tokens per window, without BOS or prefix.
        windows: How many windows to keep, evenly spaced over the text, the first one included; None keeps all.

    Returns:
        int64 [windows, seqlen].

    Raises:
        CalibrationError: The text has fewer tokens than the windows need, or a size is below one.
    """
    if seqlen < 1 or (windows is not None and windows < 1):
        raise CalibrationError(f"Evaluation needs at least one window of one token (found {windows} of {seqlen}).")
    ids = tokenize(tokenizer, text)
    available, wanted = len(ids) // seqlen, windows or 1
    if available < wanted:
        raise CalibrationError(
            f"The text is too short: found {len(ids)} tokens, needed {wanted * seqlen} for {wanted} window(s) of "
            f"{seqlen}; give a longer text, fewer windows or a smaller seqlen."
        )
    consecutive = ids[: available * seqlen].reshape(available, seqlen)
    if windows is None:
        return consecutive
    return consecutive[np.arange(windows) * available // windows]
