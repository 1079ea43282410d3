"""A lowered model that computes nonsense does not get its final name."""

from __future__ import annotations

import numpy as np
import pytest
from spikeexport.backends.onnxruntime.first_run import check_first_run
from spikeexport.calibration.foundation.errors import BackendError

from tests.lowered_models import open_pair


@pytest.fixture
def lowered(tiny_llama_folder, tmp_path):
    return open_pair(tiny_llama_folder, tmp_path, prefix=True).lowered


def test_a_right_model_passes(lowered):
    check_first_run(lowered, "tiny")


def test_values_that_are_not_finite_are_refused(lowered, monkeypatch):
    prefill = lowered.prefill
    monkeypatch.setattr(lowered, "prefill", lambda ids: (prefill(ids)[0] * np.nan, prefill(ids)[1]))
    with pytest.raises(BackendError, match="not finite"):
        check_first_run(lowered, "tiny")


def test_a_decode_that_forgets_its_cache_is_refused(lowered, monkeypatch):
    decode = lowered.decode

    def forget(ids, cache):
        for array in cache.buffer.arrays:
            array[:] = 0
        return decode(ids, cache)

    monkeypatch.setattr(lowered, "decode", forget)
    with pytest.raises(BackendError, match="disagree"):
        check_first_run(lowered, "tiny")
