"""Divergence of two sets of logits against plain float64 numpy."""

import math

import numpy as np
import pytest
from spikeexport.compare.divergence import window_divergence
from spikeexport.compare.signal import SNR_LIMIT_DB, SignalError


def softmax(logits):
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.fixture
def logits():
    random = np.random.default_rng(0)
    reference = random.normal(0, 3, (300, 50)).astype(np.float32)
    candidate = reference + random.normal(0, 0.5, reference.shape).astype(np.float32)
    return reference, candidate, random.integers(0, 50, 300)


def test_equals_float64(logits):
    reference, candidate, targets = logits
    found = window_divergence(*logits, SignalError())
    p, q = softmax(reference), softmax(candidate)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(axis=1), atol=2e-6)
    np.testing.assert_allclose(found.reference_nll, -np.log(p[np.arange(300), targets]), atol=1e-5)
    np.testing.assert_allclose(found.candidate_nll, -np.log(q[np.arange(300), targets]), atol=1e-5)
    np.testing.assert_array_equal(found.top1, reference.argmax(axis=1) == candidate.argmax(axis=1))
    five = [set(np.argsort(-row)[:5]) for row in reference], [set(np.argsort(-row)[:5]) for row in candidate]
    np.testing.assert_allclose(found.top5, [len(a & b) / 5 for a, b in zip(*five, strict=True)])


def test_signal_error_equals_numpy(logits):
    reference, candidate, _ = logits
    error = SignalError()
    error.add(reference[:100], candidate[:100])
    error.add(reference[100:], candidate[100:])
    noise = ((reference - candidate).astype(np.float64) ** 2).sum()
    assert error.snr_db == pytest.approx(10 * math.log10((reference.astype(np.float64) ** 2).sum() / noise), abs=1e-4)
    cosines = (reference * candidate).sum(1) / np.linalg.norm(reference, axis=1) / np.linalg.norm(candidate, axis=1)
    assert error.cosine == pytest.approx(cosines.mean(), abs=1e-6)
    assert error.max_abs == np.abs(reference - candidate).max()


def test_equal_tensors_have_the_largest_finite_snr(logits):
    reference, _, targets = logits
    error = SignalError()
    found = window_divergence(reference, reference, targets, error)
    assert error.snr_db == SNR_LIMIT_DB
    assert found.kl.max() == 0
    assert found.top1.min() == found.top5.min() == 1
