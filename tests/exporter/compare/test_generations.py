"""Greedy continuations side by side."""

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.compare.generations import NEW_TOKENS, compare_generations
from spikeexport.runners.onnx_runner import open_onnx_runner
from spikeexport.runners.torch_runner import TorchRunner


@pytest.fixture(scope="module")
def runner(tiny_llama_folder):
    return TorchRunner(open_checkpoint(tiny_llama_folder))


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(3, 300, (2, 40))


def test_the_same_model_never_parts(runner, exports, windows):
    for one in compare_generations(runner, open_onnx_runner(exports / "plain.onnx"), windows):
        assert (one.reference, one.candidate) == ("", "")
        assert 0 < one.shared_tokens <= NEW_TOKENS
        assert one.shared
    assert compare_generations(runner, runner, windows[:0]) == ()


def test_where_they_part_is_told(runner, exports, windows):
    prefixed = open_onnx_runner(exports / "prefixed.onnx")
    found = compare_generations(runner, prefixed, windows)
    assert any(one.reference != one.candidate for one in found)
    for one, window in zip(found, windows, strict=True):
        assert one.prompt == runner.tokenizer.decode(window[:20].tolist())
        assert one.shared_tokens < NEW_TOKENS or one.reference == one.candidate == ""
