"""Optimisation profiles: shapes that fit each other, limits checked against the model."""

from __future__ import annotations

import pytest
from spikeexport.backends.base import BuildOptions
from spikeexport.backends.tensorrt.profiles import DECODE, PREFILL, Limits, profile_shapes
from spikeexport.calibration.foundation.errors import BackendError, UsageError

INPUTS = {
    "input_ids": (-1, -1),
    "attention_mask": (-1, -1),
    "position_ids": (-1, -1),
    "past_key_values.0.key": (-1, 2, -1, 16),
}


def test_shapes_of_both_profiles():
    profiles = profile_shapes(INPUTS, Limits(max_batch=4, max_seq=64))
    prefill, decode = profiles[PREFILL], profiles[DECODE]
    assert prefill["input_ids"].minimum == (1, 1)
    assert prefill["input_ids"].maximum == (4, 64)
    assert prefill["past_key_values.0.key"].minimum == (1, 2, 0, 16)
    assert decode["input_ids"].maximum == (4, 1)
    assert decode["past_key_values.0.key"].maximum == (4, 2, 63, 16)
    assert decode["attention_mask"].maximum == (4, 64)


@pytest.mark.parametrize("max_seq", [2, 3, 64, 2048])
def test_shapes_fit_each_other_at_every_point(max_seq):
    for profile in profile_shapes(INPUTS, Limits(3, max_seq)):
        for point in ("minimum", "optimum", "maximum"):
            new = getattr(profile["input_ids"], point)[1]
            past = getattr(profile["past_key_values.0.key"], point)[2]
            assert getattr(profile["attention_mask"], point)[1] == new + past
            assert getattr(profile["position_ids"], point) == getattr(profile["input_ids"], point)
        for name in INPUTS:
            points = (profile[name].minimum, profile[name].optimum, profile[name].maximum)
            assert all(low <= middle <= high for low, middle, high in zip(*points, strict=True))


def test_limits_are_checked_against_the_models_positions():
    assert Limits.resolve(BuildOptions(), max_positions=1024, prefix_length=3) == Limits(4, 1021)
    assert Limits.resolve(BuildOptions(), max_positions=8192, prefix_length=0).max_seq == BuildOptions.DEFAULT_MAX_SEQ
    assert Limits.resolve(BuildOptions(max_seq=1021), 1024, 3).max_seq == 1021
    with pytest.raises(UsageError, match="model has 1021 positions behind its prefix of 3"):
        Limits.resolve(BuildOptions(max_seq=1022), 1024, 3)


def test_unknown_input_is_refused():
    with pytest.raises(BackendError, match="'pixel_values'"):
        profile_shapes({"pixel_values": (-1, 3, 224, 224)}, Limits(1, 8))
