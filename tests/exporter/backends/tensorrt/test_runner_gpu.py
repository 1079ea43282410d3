"""Engines on a real GPU: the same logits as the portable file, prefill, decode, padding, and limits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from spikeexport.backends.tensorrt.gpus import ask_gpus
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.export import export
from spikeexport.runners import open_subject

pytestmark = pytest.mark.gpu
TOLERANCE = 0.05
"""Largest difference of FP16 logits, whose largest magnitude is about 10 here."""


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def subjects(request, tiny_llama_folder, sample_text_file, tmp_path_factory):
    if importlib.util.find_spec(request.param.replace("-", "_")) is None:
        pytest.skip(f"{request.param} is not installed")
    folder: Path = tmp_path_factory.mktemp("gpu")
    exported = export(
        tiny_llama_folder, folder / "tiny.onnx", calibration=(str(sample_text_file),), samples=4, seqlen=64
    )
    rtx = request.param == "tensorrt-rtx"
    targets = (ask_gpus().gpus[0].compute_capability,) if rtx else ()
    built = build(exported.onnx, backend=request.param, compute_capabilities=targets, max_batch=2, max_seq=96)
    assert built.manifest.truth.int8_coverage == 1.0
    with open_subject(str(exported.onnx)) as portable, open_subject(str(built.path)) as engine:
        yield portable, engine


def _tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 300, (batch, length))


def test_prefill_and_decode(subjects):
    portable, engine = subjects
    ids = _tokens(1, 24)
    expected, _ = portable.prefill(ids)
    found, cache = engine.prefill(ids[:, :16])
    assert np.abs(found - expected[:, :16]).max() < TOLERANCE
    for position in range(16, 20):
        found, cache = engine.decode(ids[:, position : position + 1], cache)
        assert np.abs(found[:, 0] - expected[:, position]).max() < TOLERANCE
    found, _ = engine.decode(ids[:, 20:], cache)
    assert np.abs(found - expected[:, 20:]).max() < TOLERANCE


def test_left_padding_and_last_only(subjects):
    portable, engine = subjects
    ids = _tokens(2, 16)
    mask = np.ones_like(ids)
    mask[0, :5] = 0
    expected, _ = portable.prefill(ids, mask)
    found, _ = engine.prefill(ids, mask, last_only=True)
    assert found.shape == (2, 1, expected.shape[2])
    assert np.abs(found[:, 0] - expected[:, -1]).max() < TOLERANCE


def test_limits_are_refused_with_the_cure(subjects):
    _, engine = subjects
    with pytest.raises(BackendError, match="--max-batch"):
        engine.prefill(_tokens(3, 8))
    with pytest.raises(BackendError, match="--max-seq"):
        engine.prefill(_tokens(1, 97))
