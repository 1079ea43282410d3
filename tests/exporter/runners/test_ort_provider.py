"""Providers of ONNX Runtime: what is not there is refused, and so is a silent fall-back to the CPU."""

from __future__ import annotations

import onnxruntime
import pytest
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.generate import generate
from spikeexport.runners.ort_provider import PROVIDERS, provider_list, require_provider
from spikeexport.runners.subject import open_subject

from tests.constant_plan import write_portable
from tests.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provider")
    path = write_portable(tiny_llama(folder / "tiny.assets"), folder / "tiny.onnx", dtype="fp32")
    return path


@pytest.mark.parametrize("word", [word for word in PROVIDERS if word != "cpu"])
def test_a_provider_that_is_not_installed_is_refused_with_the_way_to_it(onnx, word):
    if PROVIDERS[word][0] in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has it")
    with pytest.raises(BackendError, match=rf"--provider {word}: .* no {PROVIDERS[word][0]}: "):
        open_subject(onnx, provider=word)


def test_a_session_on_another_provider_than_asked_for_is_refused(onnx):
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    require_provider(session, "cpu", onnx.name)
    with pytest.raises(BackendError, match=r"was to run on CUDAExecutionProvider.* fell back to CPUExecutionProvider"):
        require_provider(session, "cuda", onnx.name)


def test_cpu_runs_and_unknown_or_misplaced_words_are_refused(onnx, tmp_path):
    assert generate(onnx, "a", max_new_tokens=2, provider="cpu").ids
    with pytest.raises(UsageError, match="choose one of cpu, cuda"):
        provider_list(onnxruntime, "gpu")
    with pytest.raises(UsageError, match=r"--provider cuda belongs to an \.onnx"):
        open_subject(tmp_path / "model", provider="cuda")
