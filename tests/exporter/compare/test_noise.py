"""The noise floor: a small perturbation changes little, the same on every kind of subject, and leaves no trace."""

import numpy as np
import pytest
from spikeexport.build import build
from spikeexport.compare.noise import noise_floor
from spikeexport.compare.perturb import moved
from spikeexport.evaluate import evaluate
from spikeexport.runners.subject import open_subject


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(3, 300, (5, 24))


@pytest.mark.parametrize("kind", ["model", "fp32", "fp16", "built"])
def test_every_kind_is_moved_a_little(exports, tiny_llama_folder, windows, kind, tmp_path):
    subjects = {"model": tiny_llama_folder, "fp32": exports / "int8.onnx", "fp16": exports / "prefixed.onnx"}
    subject = subjects[kind] if kind in subjects else build(exports / "int8.onnx", tmp_path / "built").path
    with open_subject(subject) as runner:
        floor = noise_floor(subject, runner, windows).to_json()
    assert floor["windows"] == 4
    assert floor["relative"] == pytest.approx(1e-6)
    # Above zero, so that something was moved; the tiny model is far less chaotic than a real one.
    assert 0 < floor["logits"]["max_abs"] < 0.5
    assert 0 <= floor["kl_divergence"] < 0.01
    assert floor["perplexity_ratio"] == pytest.approx(1, abs=0.01)


def test_the_model_is_put_back(tiny_llama_folder, windows, sample_text_file):
    with open_subject(tiny_llama_folder) as runner:
        before = evaluate(runner, str(sample_text_file), windows=1, seqlen=16).perplexity
        noise_floor(tiny_llama_folder, runner, windows[:1])
        assert evaluate(runner, str(sample_text_file), windows=1, seqlen=16).perplexity == before


@pytest.mark.parametrize(("dtype", "step"), [(np.float32, 1e-6), (np.float16, 2**-10)])
def test_values_move_by_one_step_at_least(dtype, step):
    values = np.linspace(0.5, 2, 64).astype(dtype)
    change = np.abs(moved(values).astype(np.float64) / values - 1)
    assert change.min() > 0
    assert change.max() < 2.1 * step
