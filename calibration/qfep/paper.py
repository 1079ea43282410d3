"""The paper's prefix search (arXiv 2405.14428, section 4.2): a context token that makes a spike token spike once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from spikeexport.calibration.forward import Lead, run_to_module
from spikeexport.calibration.qfep.candidate import PrefixCandidate
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.spikes import spike_ratio
from spikeexport.calibration.structure.sites import DecoderStructure
from torch import nn

TOP_TOKENS = 3
CONTEXT_TOKENS = 200
_BATCH = 256


def paper_prefix(
    model: nn.Module,
    structure: DecoderStructure,
    statistics: dict[str, SiteStatistics],
    ids: np.ndarray,
    bos: int | None,
) -> PrefixCandidate | None:
    """Searches [BOS, c, t]: spike token t and context c with the largest S(first t) / S(second t) in [BOS, c, t, c, t].

    Args:
        model: Unquantised.
        structure: Its sites.
        statistics: S behind BOS.
        ids: int64 [samples, tokens], the ids that S belongs to (BOS included).
        bos: The BOS id, or None for a model without (the sequences then start with c).

    Returns:
        The prefix, or None where no token is left to try.
    """
    worst = max(statistics, key=lambda name: spike_ratio(statistics[name].token_absmax))
    skip = 0 if bos is None else 1
    tokens = top_tokens(statistics[worst].token_absmax[:, skip:], ids[:, skip:])
    contexts = [token for token, _ in Counter(ids[:, 1:].ravel().tolist()).most_common(CONTEXT_TOKENS)]
    if not tokens or not contexts:
        return None
    head = () if bos is None else (bos,)
    pairs = [(context, token) for token in tokens for context in contexts]
    rates = _rates(model, _watched(structure, worst), [(*head, c, t, c, t) for c, t in pairs], len(head))
    context, token = pairs[int(rates.argmax())]
    return PrefixCandidate((*head, context, token), "paper")


def top_tokens(absmax: np.ndarray, ids: np.ndarray) -> list[int]:
    """Returns the candidates: per sample the 3 tokens with the largest S, the largest S of each id, the 3 largest.

    Args:
        absmax: S [samples, tokens] of one module, BOS left out.
        ids: int64 [samples, tokens].
    """
    best: dict[int, float] = {}
    for row, values in enumerate(absmax):
        for column in np.argsort(np.nan_to_num(values))[-TOP_TOKENS:]:
            if np.isfinite(values[column]):
                token = int(ids[row, column])
                best[token] = max(best.get(token, 0.0), float(values[column]))
    return sorted(best, key=lambda token: -best[token])[:TOP_TOKENS]


def _watched(structure: DecoderStructure, worst: str) -> str:
    """Returns where S is read: the worst module's input, or the layer's hidden states where that module is an expert.

    A token's second occurrence may go to other experts than its first.
    """
    site = structure.site_of(worst)
    return site.name if site.expert is None else structure.layers[site.layer]


def _rates(model: nn.Module, watched: str, sequences: list[tuple[int, ...]], head: int) -> np.ndarray:
    """Returns S[first t] / S[second t] at a linear's input or a layer's output for sequences [head.., c, t, c, t]."""
    seen: list[torch.Tensor] = []

    def look(module: nn.Module, args: tuple, output: Any) -> None:
        states = args[0] if isinstance(module, nn.Linear) else output[0] if isinstance(output, tuple) else output
        seen.append(states.abs().amax(-1).float())

    handle = model.get_submodule(watched).register_forward_hook(look)
    try:
        run_to_module(model, watched, np.asarray(sequences, dtype=np.int64), Lead(), batch=_BATCH)
    finally:
        handle.remove()
    absmax = torch.cat(seen).numpy()
    return absmax[:, head + 1] / np.maximum(absmax[:, head + 3], np.finfo(np.float32).tiny)
