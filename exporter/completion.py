"""Continuing many prompts at once, each until its own end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.base import Cache, CausalRunner
from spikeexport.runners.sampling import Sampler
from spikeexport.runners.windows import left_padded, require_room

Stop = Callable[[Sequence[int]], bool]


def complete(
    runner: CausalRunner,
    prompts: Sequence[Sequence[int]],
    limit: int,
    *,
    sampler: Sampler | None = None,
    stop: Stop = lambda ids: False,
) -> list[list[int]]:
    """Continues a batch of prompts behind one KV cache; rows that have ended are carried along until all have.

    Args:
        runner: The subject.
        prompts: Token ids of each prompt, BOS included where one is wanted. An empty one starts at the subject's BOS
            or behind its prefix.
        limit: Most new tokens.
        sampler: Chooses tokens; None = the best one.
        stop: Told a row's new tokens, says whether they are enough.

    Returns:
        New token ids of each row; the subject's end-of-text token ends a row and is left out.

    Raises:
        UsageError: The prompts do not fit, or one is empty where nothing stands in front of it.
    """
    sampler = sampler or Sampler()
    logits, cache, found = _start(runner, prompts, sampler)
    require_room(runner, max((len(prompt) for prompt in prompts), default=0) + limit)
    ended = [_ended(runner, ids, limit, stop) for ids in found]
    while not all(ended):
        tokens = sampler(logits)
        for row, ids in enumerate(found):
            if not ended[row]:
                ids.append(int(tokens[row]))
                ended[row] = _ended(runner, ids, limit, stop)
        if not all(ended):
            step, cache = runner.decode(tokens[:, None], cache)
            logits = step[:, -1]
    return [ids[:-1] if ids and ids[-1] in runner.eos_ids else ids for ids in found]


def _start(
    runner: CausalRunner, prompts: Sequence[Sequence[int]], sampler: Sampler
) -> tuple[np.ndarray, Cache, list[list[int]]]:
    """Prefills the prompts; one without tokens has its first token drawn from what stands in front."""
    fed = [list(prompt) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    for row, prompt in enumerate(fed):
        if not prompt and runner.bos_id is not None:
            prompt.append(runner.bos_id)
        elif not prompt:
            found[row].append(_first_token(runner, sampler))
            prompt.append(found[row][0])
    ids, mask = left_padded(fed)
    logits, cache = runner.prefill(ids, None if mask.all() else mask, last_only=True)
    return logits[:, -1], cache, found


def _first_token(runner: CausalRunner, sampler: Sampler) -> int:
    if runner.prefix_logits is None:
        raise UsageError(f"An empty prompt gives {runner.name} nothing to start from: give it some text.")
    return int(sampler(runner.prefix_logits[None])[0])


def _ended(runner: CausalRunner, ids: Sequence[int], limit: int, stop: Stop) -> bool:
    return len(ids) >= limit or (bool(ids) and (ids[-1] in runner.eos_ids or stop(ids)))
