"""How far the exported graph of a family's configuration is from Hugging Face, in every way of calling it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from spikeexport.calibration.cache_argument import with_cache
from spikeexport.calibration.checkpoint import Checkpoint, load_model, open_checkpoint
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.portable import build_unquantised

from tests.family_cases import CASES
from tests.graphs.decoder_runs import call, largest_difference, open_session
from tests.naive_plan import naive_plan
from tests.tiny_models import tiny_family

IDS = np.random.default_rng(1).integers(3, 380, (1, 40))
PREFIX = (7, 300, 1)


def open_case(family: str, label: str, folder: Path) -> Checkpoint:
    """Writes the tiny random model of a case into `folder` and opens it."""
    return open_checkpoint(tiny_family(family, folder, **CASES[family][label]))


def measure_case(family: str, label: str, folder: Path) -> dict[str, float]:
    """Returns the largest logit difference of each way of calling the FP32 graph of a case, also behind a prefix."""
    checkpoint = open_case(family, label, folder / "model")
    model = load_model(checkpoint)
    found: dict[str, float] = {}
    for prefix in ((), PREFIX):
        session = _session(checkpoint, model, prefix, folder)
        calls = largest_difference(session, model, IDS, prefix)
        found |= {f"{kind} behind a prefix" if prefix else kind: difference for kind, difference in calls.items()}
    if _long_factors_from(checkpoint) is not None:
        found |= _beyond_the_trained_length(checkpoint, model, folder)
    return found


def _session(checkpoint: Checkpoint, model: torch.nn.Module, prefix: tuple[int, ...], folder: Path):
    plan = naive_plan(checkpoint, model, prefix=prefix, weights="fp")
    graph = build_unquantised(checkpoint, plan, {}, prefix_arrays(model, prefix), "fp32")
    return open_session(graph, folder)


def _long_factors_from(checkpoint: Checkpoint) -> int | None:
    rope = getattr(checkpoint.config, "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


@torch.inference_mode()
def _beyond_the_trained_length(checkpoint: Checkpoint, model: torch.nn.Module, folder: Path) -> dict[str, float]:
    """Compares prompts in which longrope's long factors apply; the cache is Hugging Face's too, step by step."""
    start = _long_factors_from(checkpoint) or 0
    ids = np.random.default_rng(2).integers(3, 380, (1, start + 10))
    session = _session(checkpoint, model, (), folder)
    prompt, rest = ids[:, : start + 6], ids[:, start + 6 :]
    expected = model(torch.from_numpy(prompt), use_cache=True)
    logits, past = call(session, prompt)
    found = {"long prefill": float(np.abs(logits - expected.logits.numpy()).max()), "long decode": 0.0}
    cache = expected.past_key_values
    for position in range(rest.shape[1]):
        token = rest[:, position : position + 1]
        expected = model(torch.from_numpy(token), **with_cache(model, cache), use_cache=True)
        logits, past = call(session, token, past=past)
        found["long decode"] = max(found["long decode"], float(np.abs(logits - expected.logits.numpy()).max()))
    return found
