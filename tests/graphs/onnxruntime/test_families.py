"""Every family's lowered graph computes what its portable graph computes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lowered_models import open_family_pair, random_ids

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma",
    "mixtral",
    "qwen3_moe",
    "stablelm",
    "olmo2",
    "granite",
    "smollm3",
)

EXACT = ("int8-embedding",)
"""Passes that round weights; everything else only moves FP32 roundings."""

TOLERANCE = 2e-4
"""Largest difference of logits of order 10, in FP32."""


@pytest.mark.parametrize("family", FAMILIES)
def test_unquantised_family_is_unchanged_by_lowering(family, tmp_path):
    pair = open_family_pair(family, tmp_path, quantised=False, prefix=True, without=EXACT)
    done = {report.name: report.applied for report in pair.reports}
    assert done["group-query-attention"] == 3
    assert done["rms-norm"] > 0 or family == "stablelm"
    ids = random_ids(2, 9)
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    expected, expected_cache = pair.portable.prefill(ids, mask)
    found, found_cache = pair.lowered.prefill(ids, mask)
    real = mask.astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=TOLERANCE, rtol=0)
    for step in range(3):
        token = random_ids(2, 1, seed=step + 1)
        expected, expected_cache = pair.portable.decode(token, expected_cache)
        found, found_cache = pair.lowered.decode(token, found_cache)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "mixtral"])
def test_integer_family_is_as_close_as_rounding_allows(family, tmp_path):
    pair = open_family_pair(family, tmp_path, without=EXACT)
    done = {report.name: report.applied for report in pair.reports}
    assert done["integer-linears"] > 0
    ids = random_ids(1, 24)
    expected, _ = pair.portable.prefill(ids)
    found, _ = pair.lowered.prefill(ids)
    # A value on the edge of two codes may fall to either side: rare, and one step of a scale.
    difference = np.abs(found - expected)
    assert np.quantile(difference, 0.5) < 2e-3 * np.abs(expected).max()
    assert difference.max() < 0.1 * np.abs(expected).max()
