"""Prompts side by side give what each gives alone."""

from __future__ import annotations

import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.generate import generate
from spikeexport.generate_batch import generate_batch
from spikeexport.runners.torch_runner import TorchRunner

from tests.lowered_models import open_pair

PROMPTS = ("The train", "x", "A longer prompt with more words", "Naïve café")


@pytest.fixture(scope="module", params=["PyTorch", "ONNX Runtime build"])
def runner(request, tiny_llama_folder, tmp_path_factory):
    if request.param == "PyTorch":
        return TorchRunner(open_checkpoint(tiny_llama_folder))
    work = tmp_path_factory.mktemp("batch")
    return open_pair(tiny_llama_folder, work, quantised=False, prefix=True, without=("int8-embedding",)).lowered


def test_each_row_equals_the_prompt_alone(runner):
    found = generate_batch(runner, PROMPTS, max_new_tokens=12)
    alone = [generate(runner, prompt, max_new_tokens=12) for prompt in PROMPTS]
    assert [(row.text, row.ids, row.prompt_tokens) for row in found] == [
        (row.text, row.ids, row.prompt_tokens) for row in alone
    ]


def test_rows_end_on_their_own(runner, monkeypatch):
    free = generate_batch(runner, PROMPTS, max_new_tokens=8)
    monkeypatch.setattr(runner, "eos_ids", (free[1].ids[2],))
    found = generate_batch(runner, PROMPTS, max_new_tokens=8)
    assert found[1].finished
    assert found[1].ids == free[1].ids[: free[1].ids.index(free[1].ids[2]) + 1]
    unfinished = [row for row in found if not row.finished]
    assert all(len(row.ids) == 8 for row in unfinished)


def test_more_prompts_than_the_batch_allows(runner, monkeypatch):
    expected = generate_batch(runner, PROMPTS, max_new_tokens=5)
    monkeypatch.setattr(runner, "max_batch", 3)
    assert [row.ids for row in generate_batch(runner, PROMPTS, max_new_tokens=5)] == [row.ids for row in expected]


def test_nothing_to_continue_is_refused(runner):
    with pytest.raises(UsageError, match="at least one prompt"):
        generate_batch(runner, ())
