"""Text to token ids, without special tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """Tokenises a whole text at once, however long, adding no special tokens.

    Returns:
        int64 [tokens].
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    # The batch form without offsets needs half the memory, and it has no opinion on the model's maximum length.
    ids = fast.encode_batch_fast([text], add_special_tokens=False)[0].ids if fast else _slow_ids(tokenizer, text)
    return np.asarray(ids, dtype=np.int64)


def ordinary_tokens(checkpoint: Checkpoint, model: nn.Module) -> np.ndarray:
    """Returns the ids, int64 [n], that both tokenizer and model know and that are not special (EOS among them)."""
    tokenizer = checkpoint.tokenizer()
    known = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    marked = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    special = {*tokenizer.all_special_ids, *marked, *checkpoint.generation_settings()["eos_token_id"]}
    return np.asarray([index for index in range(known) if index not in special], dtype=np.int64)


def _slow_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
