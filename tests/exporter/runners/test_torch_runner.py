"""The torch runner against plain Hugging Face calls: padding, decoding, prefixes."""

import numpy as np
import pytest
import torch
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.runners.torch_runner import TorchRunner

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def runner(tiny_llama_folder):
    return TorchRunner(open_checkpoint(tiny_llama_folder))


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return load_model(open_checkpoint(tiny_llama_folder))


def hugging_face(model, ids):
    with torch.inference_mode():
        return model(torch.tensor(ids)).logits.numpy()


def random_ids(*shape):
    return np.random.default_rng(0).integers(3, 300, shape)


def test_prefill_equals_hugging_face(runner, model):
    ids = random_ids(2, 12)
    logits, _ = runner.prefill(ids)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, hugging_face(model, ids), atol=TOLERANCE)
    last, _ = runner.prefill(ids, last_only=True)
    np.testing.assert_allclose(last, logits[:, -1:], atol=TOLERANCE)


def test_decode_continues_a_prefill(runner, model):
    ids = random_ids(2, 12)
    _, cache = runner.prefill(ids[:, :7])
    first, cache = runner.decode(ids[:, 7:8], cache)
    rest, _ = runner.decode(ids[:, 8:], cache)
    expected = hugging_face(model, ids)[:, 7:]
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), expected, atol=TOLERANCE)


def test_left_padding_changes_nothing(runner, model):
    long, short = random_ids(1, 12), random_ids(1, 12)[:, :8]
    batch = np.concatenate([long, np.pad(short, ((0, 0), (4, 0)))])
    mask = np.ones_like(batch)
    mask[1, :4] = 0
    logits, cache = runner.prefill(batch, mask)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[1, 4:], hugging_face(model, short)[0], atol=TOLERANCE)
    step = random_ids(2, 1)
    decoded, _ = runner.decode(step, cache)
    expected = hugging_face(model, np.concatenate([short, step[1:]], axis=1))[0, -1:]
    np.testing.assert_allclose(decoded[1], expected, atol=TOLERANCE)


def test_a_prefix_is_fed_and_never_seen(runner, model):
    prefix, ids = (7, 9, 1), random_ids(2, 6)
    behind = runner.behind(prefix)
    assert behind.bos_id is None
    assert behind.max_positions == runner.max_positions - 3
    logits, cache = behind.prefill(ids[:, :4])
    more, _ = behind.decode(ids[:, 4:], cache)
    whole = hugging_face(model, np.concatenate([np.tile(prefix, (2, 1)), ids], axis=1))
    np.testing.assert_allclose(np.concatenate([logits, more], axis=1), whole[:, 3:], atol=TOLERANCE)
    np.testing.assert_allclose(behind.prefix_logits, whole[0, 2], atol=TOLERANCE)


def test_what_the_runner_says_of_itself(runner):
    assert (runner.bos_id, runner.eos_ids, runner.prefix_ids) == (1, (2,), ())
    assert (runner.vocab_size, runner.max_positions, runner.prefix_logits) == (384, 1024, None)
