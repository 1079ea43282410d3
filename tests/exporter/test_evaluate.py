"""Perplexity by the protocol, against Hugging Face's own loss."""

import numpy as np
import pytest
import torch
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import CalibrationError, UsageError
from spikeexport.calibration.text import evaluation_windows
from spikeexport.evaluate import evaluate, score_text
from spikeexport.evaluation_text import EvaluationText
from spikeexport.perplexity import mean_interval, token_nll
from spikeexport.runners.torch_runner import TorchRunner
from spikeexport.runners.windows import window_batches


@pytest.fixture(scope="module")
def runner(tiny_llama_folder):
    return TorchRunner(open_checkpoint(tiny_llama_folder))


def windows_of(runner, text, seqlen, windows):
    return evaluation_windows(runner.tokenizer, text, seqlen, windows)


def loss_behind(model, lead, windows):
    """Mean loss over every token of the windows, each behind `lead`, one window at a time."""
    losses = []
    for window in windows:
        ids = torch.tensor([[*lead, *window]])
        labels = ids.clone()
        labels[0, : len(lead)] = -100
        with torch.inference_mode():
            losses.append(float(model(ids, labels=labels).loss))
    return np.array(losses)


@pytest.mark.parametrize("seqlen", [16, 33])
def test_bos_goes_in_front_and_every_token_counts(tiny_llama_folder, runner, sample_text, sample_text_file, seqlen):
    windows = windows_of(runner, sample_text, seqlen, 5)
    expected = np.exp(loss_behind(load_model(open_checkpoint(tiny_llama_folder)), [1], windows).mean())
    result = evaluate(tiny_llama_folder, str(sample_text_file), windows=5, seqlen=seqlen)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert result.tokens == 5 * seqlen


def test_without_bos_the_first_token_is_context(runner, sample_text_file, sample_text):
    windows = windows_of(runner, sample_text, 16, 4)
    expected = [float(runner.model(torch.tensor([w]), labels=torch.tensor([w])).loss) for w in windows.tolist()]
    result = evaluate(runner, str(sample_text_file), windows=4, seqlen=16, bos=False)
    np.testing.assert_allclose(result.window_nll, expected, rtol=1e-5)
    assert result.tokens == 4 * 15


def test_a_prefix_stands_in_the_place_of_bos(runner, sample_text):
    windows = windows_of(runner, sample_text, 16, 4)
    behind = runner.behind((9, 7, 1))
    result = score_text(behind, EvaluationText("text", windows))
    np.testing.assert_allclose(result.window_nll, loss_behind(runner.model, [9, 7, 1], windows), rtol=1e-5)
    assert result.tokens == 4 * 16


def test_the_whole_text_is_used_unless_told_otherwise(runner, sample_text, sample_text_file):
    result = evaluate(runner, str(sample_text_file), seqlen=500)
    assert len(result.window_nll) == len(windows_of(runner, sample_text, 500, None)) > 10


def test_batches_respect_the_subject(runner):
    windows = np.zeros((10, 16), np.int64)
    assert sum(len(batch) for batch in window_batches(runner, windows)) == 10
    runner.max_batch = 3
    try:
        assert [len(batch) for batch in window_batches(runner, windows)] == [3, 3, 3, 1]
    finally:
        runner.max_batch = None


def test_self_text_is_seeded_and_likely(runner, sample_text_file):
    first, second = (evaluate(runner, windows=2, seqlen=12) for _ in range(2))
    assert first.text == "self"
    np.testing.assert_array_equal(first.window_nll, second.window_nll)
    assert first.perplexity < evaluate(runner, str(sample_text_file), windows=8, seqlen=12).perplexity


def test_bad_input_is_refused(runner, sample_text_file, tmp_path):
    with pytest.raises(UsageError, match="at most 1024 tokens"):
        evaluate(runner, str(sample_text_file), seqlen=2000)
    with pytest.raises(CalibrationError, match="too short"):
        evaluate(runner, str(sample_text_file), windows=1000, seqlen=500)
    with pytest.raises(CalibrationError, match=r"gone\.txt"):
        evaluate(runner, str(tmp_path / "gone.txt"))


def test_token_nll_is_exact_for_large_logits():
    logits = np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(token_nll(logits, np.array([1, 0])), [1000.0, np.log(2)], rtol=1e-6)


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = mean_interval(random.normal(3.0, 1.0, 20), seed)
        hits += low <= 3.0 <= high
    assert 170 <= hits <= 199
