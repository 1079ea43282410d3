import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.text import calibration_windows
from spikeexport.calibration.text.calibration import spread_windows
from spikeexport.calibration.text.tokens import tokenize


@pytest.fixture(scope="module")
def checkpoint(tiny_llama_folder):
    return open_checkpoint(tiny_llama_folder)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 500), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_windows_lie_apart_and_inside(samples, seqlen, spare, seed):
    ids = np.arange(samples * seqlen + spare)
    windows = spread_windows(ids, samples, seqlen, seed)
    assert windows.shape == (samples, seqlen)
    assert (np.diff(windows, axis=1) == 1).all()
    assert (windows[1:, 0] > windows[:-1, -1]).all()
    assert windows[-1, -1] <= ids[-1]


def test_windows_of_a_file(checkpoint, tmp_path):
    file, text = tmp_path / "numbers.txt", " ".join(str(number) for number in range(1000, 3000))
    file.write_text(text)
    ids, info = calibration_windows(checkpoint, None, [str(file)], 16, 64, seed=3)
    assert ids.shape == (16, 64)
    assert ids.dtype == np.int64
    whole = tokenize(checkpoint.tokenizer(), text)
    starts = [_place(whole, window) for window in ids]
    assert starts == sorted(starts)
    assert starts[0] < len(whole) / 16
    assert starts[-1] > len(whole) * 14 / 16
    assert info.sources == ("numbers.txt",)
    assert (info.samples, info.seqlen, info.seed) == (16, 64, 3)
    assert info.sha256 == hashlib.sha256(ids.tobytes()).hexdigest()


def _place(whole, window):
    return next(i for i in range(len(whole)) if np.array_equal(whole[i : i + len(window)], window))


def test_the_seed_chooses_the_windows(checkpoint, sample_text_file):
    runs = [calibration_windows(checkpoint, None, [str(sample_text_file)], 8, 32, seed)[1].sha256 for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_sources_share_the_samples_evenly(checkpoint, sample_text_file, tmp_path):
    upper, json_lines = tmp_path / "upper.txt", tmp_path / "lines.jsonl"
    upper.write_text(sample_text_file.read_text().upper())
    json_lines.write_text('{"text": "7 8 9 7 8 9 7 8 9 7 8 9 7 8 9"}\n' * 40)
    sources = [str(sample_text_file), str(upper), str(json_lines)]
    ids, info = calibration_windows(checkpoint, None, sources, 8, 20, seed=0)
    texts = [checkpoint.tokenizer().decode(window) for window in ids]
    assert [text.isupper() for text in texts] == [False] * 3 + [True] * 3 + [False] * 2
    assert ["7 8 9" in text for text in texts] == [False] * 6 + [True] * 2
    assert info.sources == ("sample.txt", "upper.txt", "lines.jsonl")


def test_too_short_says_found_and_needed(checkpoint, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("Only a few words here.")
    found = len(tokenize(checkpoint.tokenizer(), file.read_text()))
    with pytest.raises(CalibrationError, match=rf"short\.txt is too short: found {found} tokens, needed 640 for 10"):
        calibration_windows(checkpoint, None, [str(file)], 10, 64, seed=0)


@pytest.mark.parametrize(
    ("sources", "samples", "seqlen", "message"),
    [
        ([], 8, 8, "at least one source"),
        (["self"], 0, 8, "at least one"),
        (["self"], 8, 0, "at least one"),
        (["a.txt", "b.txt"], 1, 8, "1 calibration samples cannot be shared over 2 sources"),
        (["missing.txt"], 1, 8, "does not exist"),
        (["self"], 1, 8, "isn't loaded"),
    ],
)
def test_requests_that_cannot_be_met(checkpoint, sources, samples, seqlen, message):
    with pytest.raises(CalibrationError, match=message):
        calibration_windows(checkpoint, None, sources, samples, seqlen, seed=0)


def test_a_tokenizer_of_another_model(tiny_llama_folder, tmp_path, sample_text_file):
    from tests.tiny_models import tiny_llama

    small = open_checkpoint(tiny_llama(tmp_path / "small", vocab_size=100))
    with pytest.raises(CalibrationError, match=r"tokenizer gives token id \d+, the model knows 100 tokens"):
        calibration_windows(small, None, [str(sample_text_file)], 2, 8, seed=0)
