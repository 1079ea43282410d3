"""Generation equals Hugging Face's own, streams its text and stops where it should."""

import pytest
import torch
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.generate import generate, prompt_tokens
from spikeexport.runners.torch_runner import TorchRunner


@pytest.fixture
def runner(tiny_llama_folder):
    return TorchRunner(open_checkpoint(tiny_llama_folder))


@pytest.mark.parametrize("prompt", ["The train", "x", "Naïve café: 12 €"])
def test_greedy_equals_hugging_face(runner, prompt):
    encoded = runner.tokenizer(prompt, return_tensors="pt")
    expected = runner.model.generate(
        encoded.input_ids, attention_mask=encoded.attention_mask, do_sample=False, max_new_tokens=40
    )
    found = generate(runner, prompt, max_new_tokens=40)
    assert list(found.ids) == expected[0, encoded.input_ids.shape[1] :].tolist()
    assert found.prompt_tokens == encoded.input_ids.shape[1]


def test_streamed_pieces_are_the_text(runner):
    pieces = []
    result = generate(runner, "The", max_new_tokens=60, temperature=2.0, seed=3, on_text=pieces.append)
    assert "".join(pieces) == result.text == runner.tokenizer.decode(result.ids, skip_special_tokens=True)
    assert len(pieces) > 5


def test_stops_at_the_end_token(runner):
    free = generate(runner, "The train", max_new_tokens=10)
    runner.eos_ids = (free.ids[4],)
    first = free.ids.index(free.ids[4])
    stopped = generate(runner, "The train", max_new_tokens=10)
    assert stopped.ids == free.ids[: first + 1]
    assert stopped.finished
    assert not free.finished


def test_seeds_decide_the_sample(runner):
    texts = [generate(runner, "The", max_new_tokens=20, temperature=1.5, seed=seed).ids for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_behind_a_prefix_equals_feeding_it(runner):
    ids = (9, 7, 1)
    behind = runner.behind(ids)
    prompt = behind.tokenizer("The train", add_special_tokens=False).input_ids
    with torch.inference_mode():
        expected = runner.model.generate(torch.tensor([[*ids, *prompt]]), do_sample=False, max_new_tokens=12)
    found = generate(behind, "The train", max_new_tokens=12)
    assert list(found.ids) == expected[0, 3 + len(prompt) :].tolist()


def test_an_empty_prompt_starts_from_bos_or_the_prefix(runner):
    assert prompt_tokens(runner, "") == [1]
    behind = runner.behind((9, 7, 1))
    assert prompt_tokens(behind, "") == []
    expected = runner.model.generate(torch.tensor([[9, 7, 1]]), do_sample=False, max_new_tokens=6)
    assert list(generate(behind, "", max_new_tokens=6).ids) == expected[0, 3:].tolist()


def test_numbers_out_of_range_are_refused(runner):
    with pytest.raises(UsageError, match="max-new-tokens"):
        generate(runner, "x", max_new_tokens=0)
    with pytest.raises(UsageError, match="at most 1024"):
        generate(runner, "x", max_new_tokens=2000)
    with pytest.raises(UsageError, match="chat template"):
        generate(runner, "x", chat=True)


def test_a_stop_text_ends_and_is_left_out(runner):
    free = generate(runner, "The", max_new_tokens=40, temperature=2.0, seed=3)
    stop = free.text[10:13]
    pieces = []
    found = generate(
        runner, "The", max_new_tokens=40, temperature=2.0, seed=3, stop=(stop, "never there"), on_text=pieces.append
    )
    assert found.text == "".join(pieces) == free.text[: free.text.index(stop)]
    assert found.finished
    assert found.ids == free.ids[: len(found.ids)]


def test_what_only_begins_like_a_stop_text_is_shown_in_the_end(runner):
    free = generate(runner, "The", max_new_tokens=12, temperature=2.0, seed=3)
    found = generate(runner, "The", max_new_tokens=12, temperature=2.0, seed=3, stop=(free.text[-2:] + "\x00",))
    assert (found.text, found.finished) == (free.text, free.finished)
