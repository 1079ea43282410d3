"""The sampler draws from the softmax, and the same for the same seed."""

import numpy as np
import pytest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.sampling import Sampler


def test_greedy_takes_the_first_best():
    assert Sampler()(np.array([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]], np.float32)).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    logits = np.array([2.0, 1.0, 0.0, -np.inf], np.float32)
    draws = Sampler(temperature, seed=1)(np.tile(logits, (20_000, 1)))
    found = np.bincount(draws, minlength=4) / len(draws)
    weights = np.exp(logits / temperature)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=0.02)


def test_seeds():
    logits = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
    assert (Sampler(1.0, 3)(logits) == Sampler(1.0, 3)(logits)).all()
    assert (Sampler(1.0, 3)(logits) != Sampler(1.0, 4)(logits)).any()


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(UsageError, match="temperature"):
        Sampler(temperature)


def test_top_k_draws_the_likeliest_by_their_own_frequencies():
    logits = np.array([0.0, 2.0, 1.0, -1.0], np.float32)
    found = np.bincount(Sampler(1.0, seed=1, top_k=2)(np.tile(logits, (20_000, 1))), minlength=4) / 20_000
    weights = np.array([0, np.exp(2), np.exp(1), 0])
    np.testing.assert_allclose(found, weights / weights.sum(), atol=0.02)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.5, {1}), (0.75, {1, 2}), (0.99, {0, 1, 2}), (1e-9, {1})])
def test_top_p_draws_from_the_smallest_set_of_that_probability(top_p, allowed):
    logits = np.log(np.array([0.1, 0.6, 0.295, 0.005], np.float32))
    assert set(Sampler(1.0, seed=2, top_p=top_p)(np.tile(logits, (5000, 1))).tolist()) == allowed


@pytest.mark.parametrize(
    ("options", "message"), [({"top_k": 0}, "top-k 0"), ({"top_p": 0.0}, "top-p 0"), ({"top_p": 2}, "top-p 2")]
)
def test_impossible_cuts_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Sampler(1.0, **options)
