"""Calibration text from the model itself: nothing to download, and the distribution that it will meet."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np
import torch
from spikeexport.calibration.cache_argument import with_cache
from spikeexport.calibration.checkpoint import Checkpoint, bos_id
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.text.growing_cache import cache_bytes_per_sequence, growing_cache
from spikeexport.calibration.text.tokens import ordinary_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

_MAX_BATCH = 128
_CACHE_BUDGET_BYTES = 768 * 2**20


def sample_from_model(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    samples: int,
    seqlen: int,
    seed: int,
    *,
    any_opening: bool = False,
) -> np.ndarray:
    """Samples token sequences from the model at temperature 1, from BOS, with a key/value cache.

    A model without BOS starts from its EOS; one without either starts behind a newline, so that the first token
    comes from the model's distribution at the beginning of a line. The start itself is not part of the result.
    Special tokens, EOS among them, are never drawn: every sequence runs to its full length as ordinary text. Token
    `j` of sample `i` takes the `i, j`-th number of one seeded stream, so that the batch size doesn't matter.

    Args:
        checkpoint: The opened checkpoint, for its tokenizer and settings.
        model: Its loaded model.
        samples: Number of sequences.
        seqlen: Tokens per sequence.
        seed: Seed of the random numbers.
        any_opening: Whether the first token of a sequence is any ordinary one of the vocabulary, each as likely
            (LLM-QAT, arXiv 2305.17888, section 3.1), so that rare words and their contexts are seen as well.

    Returns:
        int64 [samples, seqlen].

    Raises:
        CalibrationError: The sequences don't fit the model's positions, or its logits aren't finite.
    """
    start = _start_ids(checkpoint)
    _require_positions(model, len(start) + seqlen)
    numbers = torch.rand(samples, seqlen, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    batch = _batch_size(model, samples, len(start) + seqlen)
    allowed = _allowed_tokens(checkpoint, model)
    steps = -(-samples // batch) * seqlen
    with progress_bar("Sampling text from the model", steps) as advance:
        parts = [_sample_batch(model, start, part, allowed, any_opening, advance) for part in numbers.split(batch)]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel,
    start: list[int],
    numbers: torch.Tensor,
    allowed: torch.Tensor,
    any_opening: bool,
    advance: Callable[[], None],
) -> torch.Tensor:
    """Samples int64 [batch, seqlen], one token per number of `numbers` [batch, seqlen]."""
    batch, seqlen = numbers.shape
    cache = growing_cache(model.config, len(start) + seqlen)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    ids = torch.tensor([start] * batch)
    drawn = torch.empty(batch, seqlen, dtype=torch.int64)
    if any_opening:
        ordinary = allowed.nonzero()[:, 0]
        drawn[:, 0] = ordinary[(numbers[:, 0] * len(ordinary)).long()]
        ids = torch.cat([ids, drawn[:, :1]], dim=1)
        advance()
    for step in range(int(any_opening), seqlen):
        logits = model(input_ids=ids, **with_cache(model, cache), use_cache=True, **last_only).logits[:, -1]
        ids = _draw(logits.float(), numbers[:, step : step + 1], allowed)
        drawn[:, step] = ids[:, 0]
        advance()
    return drawn


def _draw(logits: torch.Tensor, numbers: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Inverts the cumulative distribution: logits [batch, vocab] and numbers [batch, 1] in [0, 1) to ids [batch, 1]."""
    if not torch.isfinite(logits).all():
        raise CalibrationError(
            "The model's own logits aren't finite while sampling calibration text: check the checkpoint, or give a "
            "text with --calibration."
        )
    probabilities = torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1)
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    # The first entry above the target has a probability above zero, so a forbidden token can't be hit.
    target = numbers * cumulative[:, -1:] * (1 - 1e-12)
    return torch.searchsorted(cumulative, target, right=True)


def _start_ids(checkpoint: Checkpoint) -> list[int]:
    tokenizer = checkpoint.tokenizer()
    for candidate in (bos_id(tokenizer), tokenizer.eos_token_id):
        if candidate is not None:
            return [int(candidate)]
    return list(tokenizer("\n", add_special_tokens=False).input_ids)


def _allowed_tokens(checkpoint: Checkpoint, model: PreTrainedModel) -> torch.Tensor:
    """Returns bool [vocab]: ordinary tokens that the tokenizer knows."""
    allowed = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
    allowed[torch.from_numpy(ordinary_tokens(checkpoint, model))] = True
    return allowed


def _batch_size(model: PreTrainedModel, samples: int, length: int) -> int:
    per_sequence = cache_bytes_per_sequence(model.config, length, model.dtype.itemsize)
    most = max(1, min(_MAX_BATCH, samples, _CACHE_BUDGET_BYTES // per_sequence))
    # Batches of one size: 40 samples make 20 + 20, not 32 + 8.
    return -(-samples // -(-samples // most))


def _require_positions(model: PreTrainedModel, length: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise CalibrationError(
            f"Sampling {length} tokens per sequence exceeds the model's {positions} positions: give a smaller --seqlen."
        )
