"""Scales of an INT8 KV cache: those of the caches that PyTorch fills, behind the prefix, of the folded model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikeexport.calibration.cache_argument import with_cache
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.kv_scales import KV_LIMIT, measure_kv_scales
from spikeexport.calibration.records.plan import Fold
from transformers import DynamicCache

from tests.calibration.models import load

PREFIX = (7, 300, 1)


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return load(tiny_llama_folder)[1]


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(3, 380, (3, 24))


def caches(model, windows, front):
    """Per layer (keys, values) [n, kv_heads, front + L, D] of each window behind ordinary tokens."""
    cache = DynamicCache()
    rows = np.concatenate([np.tile(np.array(front, np.int64), (len(windows), 1)), windows], axis=1)
    with torch.inference_mode():
        model(input_ids=torch.tensor(rows), **with_cache(model, cache), use_cache=True)
    return [(layer.keys.numpy(), layer.values.numpy()) for layer in cache.layers]


@pytest.mark.parametrize("lead", [Lead(bos=1), Lead(prefix=PREFIX)], ids=["bos", "prefix"])
def test_absmax_falls_on_the_largest_code(model, windows, lead):
    scales = measure_kv_scales(model, windows, lead, batch=2)
    assert len(scales) == 6
    for layer, pair in enumerate(caches(model, windows, lead.prefix or lead.inline)):
        for kind, array in zip(("key", "value"), pair, strict=True):
            seen = array[:, :, len(lead.prefix) :]
            expected = np.abs(seen).max(axis=(0, 2)) / KV_LIMIT
            assert scales[f"kv.{layer}.{kind}"].shape == (2, 16)
            np.testing.assert_allclose(scales[f"kv.{layer}.{kind}"], expected, rtol=1e-4)


def test_a_fold_of_the_values_divides_their_scales_alone(model, windows):
    vector = np.linspace(0.5, 4, 32).astype(np.float32)
    fold = Fold(kind="v_o", producer="model.layers.1.self_attn.v_proj", consumers=(), scales="s")
    plain = measure_kv_scales(model, windows, Lead(bos=1))
    folded = measure_kv_scales(model, windows, Lead(bos=1), (fold,), {"s": vector})
    np.testing.assert_allclose(folded["kv.1.value"], plain["kv.1.value"] / vector.reshape(2, 16), rtol=1e-6)
    assert all(np.array_equal(folded[name], plain[name]) for name in plain if name != "kv.1.value")


def test_values_that_are_not_finite_are_named(tiny_llama_folder, windows):
    broken = load(tiny_llama_folder)[1]
    with torch.no_grad():
        broken.model.layers[2].self_attn.v_proj.weight[0] = torch.inf
    with pytest.raises(CalibrationError, match="values of layer 2 hold NaN or infinite"):
        measure_kv_scales(broken, windows, Lead(bos=1))
