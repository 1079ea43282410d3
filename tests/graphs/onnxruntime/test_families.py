"""Every family's lowered graph computes what its portable graph computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.graphs.onnxruntime.lowering import lower
from spikeexport.graphs.saving import save_model
from spikeexport.runners.assets import Assets
from spikeexport.runners.onnx_runner import OnnxRunner

from tests.lowered_models import ONE_THREAD, PREFIX_IDS, open_family_pair, portable, random_ids
from tests.tiny_models import tiny_family

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


@pytest.mark.parametrize("family", FAMILIES)
def test_integer_family_is_as_close_as_rounding_allows(family, tmp_path):
    pair = open_family_pair(family, tmp_path, without=EXACT)
    done = {report.name: report.applied for report in pair.reports}
    assert done["integer-linears"] > 0
    ids = random_ids(5, 24)
    expected, _ = pair.portable.prefill(ids)
    found, _ = pair.lowered.prefill(ids)
    largest = np.abs(found - expected).max(axis=(1, 2)) / np.abs(expected).max()
    # A value on the edge of two codes may fall to either side: rare, one step of a scale, seen by all later tokens.
    assert np.median(largest) < 2e-6
    assert largest.max() < 0.1


@pytest.mark.parametrize(
    ("family", "reason"), [("gemma2", "differ in their masks"), ("gemma3_text", "not plainly causal")]
)
def test_windows_keep_their_attention_and_the_rest_is_lowered(family, reason, tmp_path):
    """Layers with a window of 64 tokens: beyond it, with a prefix and padding, the numbers stay."""
    folder = tiny_family(family, tmp_path / family)
    save_model(portable(folder, dtype="fp32", quantised=False, prefix=True), tmp_path / "portable.onnx")
    model = ir.load(tmp_path / "portable.onnx")
    reports = {report.name: report for report in lower(model, EXACT)}
    assert reports["group-query-attention"].applied == 0
    assert reason in reports["group-query-attention"].skips[0].why
    assert reports["rms-norm"].applied > 0
    save_model(model, tmp_path / "lowered.onnx")
    assets = Assets(folder, PREFIX_IDS)
    exported = OnnxRunner(tmp_path / "portable.onnx", assets, ONE_THREAD)
    lowered = OnnxRunner(tmp_path / "lowered.onnx", assets, ONE_THREAD, "all")
    ids = random_ids(2, 90)
    mask = np.ones_like(ids)
    mask[1, :7] = 0
    expected, expected_cache = exported.prefill(ids, mask)
    found, found_cache = lowered.prefill(ids, mask)
    real = mask.astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=TOLERANCE, rtol=0)
    token = random_ids(2, 1, seed=4)
    expected, _ = exported.decode(token, expected_cache)
    found, _ = lowered.decode(token, found_cache)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
