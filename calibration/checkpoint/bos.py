"""The token that stands before a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint.checkpoint import Checkpoint
    from transformers import PreTrainedTokenizerBase


def bos_id(source: Checkpoint | PreTrainedTokenizerBase) -> int | None:
    """Returns the token to put before a text, or None where there is none.

    That is the tokenizer's BOS. A tokenizer without one that begins an encoded text with its EOS says that EOS
    stands in for BOS.
    """
    from spikeexport.calibration.checkpoint.checkpoint import Checkpoint

    tokenizer = source.tokenizer() if isinstance(source, Checkpoint) else source
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    first = tokenizer("a").input_ids[:1]
    if tokenizer.eos_token_id is not None and first == [tokenizer.eos_token_id]:
        return int(tokenizer.eos_token_id)
    return None
