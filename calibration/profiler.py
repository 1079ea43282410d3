"""Profiling: where a model's activations spike, on which tokens, and how large its hidden states get."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from spikeexport.calibration.forward import Lead, windows_with_lead
from spikeexport.calibration.foundation.progress import warn
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.rare_experts import MIN_TOKENS, rare_experts
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.records.profile import Profile, SpikeToken
from spikeexport.calibration.site_statistics import SiteStatistics
from spikeexport.calibration.spikes import HiddenStateWatch, module_spikes, spike_tokens
from spikeexport.calibration.structure.sites import DecoderStructure, discover
from torch import nn

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint


def profile_model(checkpoint: Checkpoint, model: nn.Module, ids: np.ndarray, calibration: CalibrationInfo) -> Profile:
    """Measures the token-wise absmax at the input of every decoder linear (arXiv 2405.14428, section 3).

    Args:
        checkpoint: Where the model came from (its tokenizer and identity).
        model: The loaded model.
        ids: int64 [samples, seqlen] without BOS; BOS is put in front where the tokenizer has one, and measured.
        calibration: What the ids are.

    Raises:
        CalibrationError: An activation is NaN or infinite.
    """
    from spikeexport.calibration.checkpoint import bos_id

    structure = discover(model)
    lead = Lead(bos=bos_id(checkpoint))
    profile, statistics = profile_windows(checkpoint, model, structure, ids, lead, calibration)
    warn_of_rare_experts(structure, statistics)
    return profile


def profile_windows(
    checkpoint: Checkpoint,
    model: nn.Module,
    structure: DecoderStructure,
    ids: np.ndarray,
    lead: Lead,
    calibration: CalibrationInfo,
    rotations: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Profile, dict[str, SiteStatistics]]:
    """Profiles behind any lead and keeps the statistics; arguments as for `profile_model` and `observe_sites`."""
    start = time.perf_counter()
    watch = HiddenStateWatch(model, structure)
    try:
        statistics = observe_sites(
            model, structure, ids, lead, rotations=rotations, description="Profiling activations"
        )
    finally:
        hidden = watch.close()
    tokens = spike_tokens(structure, statistics, windows_with_lead(ids, lead))
    profile = Profile(
        model=checkpoint.model_id,
        calibration=calibration,
        modules=module_spikes(structure, statistics),
        spike_tokens=_with_text(tokens, checkpoint.tokenizer()),
        hidden_states=hidden,
        seconds=round(time.perf_counter() - start, 3),
    )
    return profile, statistics


def warn_of_rare_experts(structure: DecoderStructure, statistics: dict[str, SiteStatistics]) -> None:
    """Warns of each expert that too few tokens reached."""
    for expert, tokens in rare_experts(structure, statistics).items():
        warn(f"{expert} saw {tokens} calibration tokens of {MIN_TOKENS}: it takes the scales of its layer.")


def _with_text(tokens: Iterable[SpikeToken], tokenizer) -> tuple[SpikeToken, ...]:
    return tuple(token.model_copy(update={"text": tokenizer.decode([token.id])}) for token in tokens)
