import warnings

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.text import evaluation_windows
from spikeexport.calibration.text.tokens import tokenize

from tests.tiny_models import BOS, EOS


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder):
    return open_checkpoint(tiny_llama_folder).tokenizer()


@pytest.fixture(scope="module")
def ids(tokenizer, sample_text):
    return tokenizer(sample_text, add_special_tokens=False).input_ids


def test_consecutive_windows_without_special_tokens(tokenizer, sample_text, ids):
    windows = evaluation_windows(tokenizer, sample_text, 100, None)
    assert windows.dtype == np.int64
    assert windows.shape == (len(ids) // 100, 100)
    assert windows.ravel().tolist() == ids[: windows.size]
    assert BOS not in windows
    assert EOS not in windows


def test_n_windows_are_evenly_spaced(tokenizer, sample_text):
    every = evaluation_windows(tokenizer, sample_text, 100, None)
    some = evaluation_windows(tokenizer, sample_text, 100, 8)
    places = [int(np.flatnonzero((every == window).all(axis=1))[0]) for window in some]
    assert places[0] == 0
    assert set(np.diff(places)) <= {len(every) // 8, len(every) // 8 + 1}
    assert np.array_equal(evaluation_windows(tokenizer, sample_text, 100, len(every)), every)


def test_too_short_says_found_and_needed(tokenizer):
    found = len(tokenize(tokenizer, "A short text."))
    with pytest.raises(CalibrationError, match=rf"found {found} tokens, needed 200 for 2 window\(s\) of 100"):
        evaluation_windows(tokenizer, "A short text.", 100, 2)
    with pytest.raises(CalibrationError, match=rf"found {found} tokens, needed 100 for 1"):
        evaluation_windows(tokenizer, "A short text.", 100, None)
    with pytest.raises(CalibrationError, match="found 0 tokens"):
        evaluation_windows(tokenizer, "", 100, None)


@pytest.mark.parametrize(("seqlen", "windows"), [(0, None), (-1, 2), (10, 0), (10, -3)])
def test_senseless_sizes(tokenizer, sample_text, seqlen, windows):
    with pytest.raises(CalibrationError, match="at least one"):
        evaluation_windows(tokenizer, sample_text, seqlen, windows)


def test_slow_tokenizers_give_the_same(tokenizer, sample_text, ids):
    class Slow:
        def __call__(self, text, *, add_special_tokens, verbose):
            assert not verbose
            return tokenizer(text, add_special_tokens=add_special_tokens)

    assert tokenize(Slow(), sample_text).tolist() == ids


@pytest.mark.slow
def test_ten_megabytes_without_a_word(smollm2, sample_text, caplog, capsys):
    text = sample_text * (10_000_000 // len(sample_text) + 1)
    tokenizer = smollm2.tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows = evaluation_windows(tokenizer, text, 512, 16)
    assert windows.shape == (16, 512)
    assert not caplog.records
    assert capsys.readouterr().err == ""
