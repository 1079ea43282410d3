"""The lowered model's runner: padding, chunks, decode in place, growing buffers."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.kv_buffer import GRANULE

from tests.lowered_models import Pair, open_pair, random_ids

EXACT = ("int8-embedding",)
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=[False, True], ids=["no prefix", "prefix"])
def pair(request, tiny_llama_folder, tmp_path_factory) -> Pair:
    work = tmp_path_factory.mktemp("runner")
    return open_pair(tiny_llama_folder, work, quantised=False, prefix=request.param, without=EXACT)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_decode_equals_prefill_on_the_same_tokens(pair):
    ids = random_ids(1, 20)
    whole, _ = pair.lowered.prefill(ids)
    logits, cache = pair.lowered.prefill(ids[:, :5])
    steps = [logits]
    for place in range(5, 20):
        logits, cache = pair.lowered.decode(ids[:, place : place + 1], cache)
        steps.append(logits)
    close(np.concatenate(steps, axis=1), whole)


def test_integer_decode_equals_prefill_exactly_where_codes_agree(tiny_llama_folder, tmp_path):
    lowered = open_pair(tiny_llama_folder, tmp_path, prefix=True).lowered
    ids = random_ids(1, 12)
    whole, _ = lowered.prefill(ids)
    first, cache = lowered.prefill(ids[:, :11])
    last, _ = lowered.decode(ids[:, 11:], cache)
    np.testing.assert_allclose(np.concatenate([first, last], axis=1), whole, atol=0.02 * np.abs(whole).max(), rtol=0)


def test_several_tokens_behind_a_cache(pair):
    ids = random_ids(2, 15)
    whole, _ = pair.lowered.prefill(ids)
    _, cache = pair.lowered.prefill(ids[:, :6])
    logits, cache = pair.lowered.decode(ids[:, 6:10], cache)
    close(logits, whole[:, 6:10])
    logits, _ = pair.lowered.decode(ids[:, 10:], cache)
    close(logits, whole[:, 10:])


def test_left_padded_rows_equal_the_same_rows_alone(pair):
    ids = random_ids(3, 10)
    mask = np.ones_like(ids)
    mask[0, :7], mask[2, :3] = 0, 0
    logits, cache = pair.lowered.prefill(ids, mask)
    assert np.isfinite(logits).all()
    tokens = random_ids(3, 1, seed=5)
    after, _ = pair.lowered.decode(tokens, cache)
    for row, start in enumerate((7, 0, 3)):
        alone, alone_cache = pair.lowered.prefill(ids[row : row + 1, start:])
        close(logits[row, start:], alone[0])
        close(after[row], pair.lowered.decode(tokens[row : row + 1], alone_cache)[0][0])


def test_padding_inside_a_row_is_refused(pair):
    mask = np.ones((1, 4), np.int64)
    mask[0, 2] = 0
    with pytest.raises(UsageError, match="Row 0"):
        pair.lowered.prefill(random_ids(1, 4), mask)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_change_nothing(chunk, tiny_llama_folder, tmp_path):
    whole = open_pair(tiny_llama_folder, tmp_path / "whole", quantised=False, prefix=True, without=EXACT).lowered
    options = {"quantised": False, "prefix": True, "without": EXACT, "chunk": chunk}
    chunked = open_pair(tiny_llama_folder, tmp_path / "chunked", **options).lowered
    ids = random_ids(1, 13)
    expected, _ = whole.prefill(ids)
    found, cache = chunked.prefill(ids)
    close(found, expected)
    last, _ = chunked.prefill(ids, last_only=True)
    close(last, expected[:, -1:])
    token = random_ids(1, 1, seed=3)
    close(chunked.decode(token, cache)[0], whole.decode(token, whole.prefill(ids)[1])[0])


def test_last_only_is_the_last_row_of_all_logits(pair):
    ids = random_ids(2, 9)
    every, _ = pair.lowered.prefill(ids)
    last, _ = pair.lowered.prefill(ids, last_only=True)
    assert last.shape == (2, 1, pair.lowered.vocab_size)
    close(last, every[:, -1:])


def test_the_buffer_grows_past_its_first_capacity(pair):
    ids = random_ids(1, GRANULE + 40)
    expected, _ = pair.portable.prefill(ids)
    _, cache = pair.lowered.prefill(ids[:, :100])
    before = cache.buffer.capacity
    logits, cache = pair.lowered.decode(ids[:, 100:-1], cache)
    assert cache.buffer.capacity > before
    close(logits, expected[:, 100:-1])
    close(pair.lowered.decode(ids[:, -1:], cache)[0], expected[:, -1:])


def test_a_finished_cache_leaves_its_buffer_to_the_next_one(pair):
    ids, other = random_ids(1, 12), random_ids(1, 9, seed=8)
    expected, _ = pair.portable.prefill(other)
    _, cache = pair.lowered.prefill(ids)
    address = cache.buffer.arrays[0].ctypes.data
    del cache
    gc.collect()
    found, cache = pair.lowered.prefill(other)
    assert cache.buffer.arrays[0].ctypes.data == address
    close(found, expected)


def test_two_caches_live_side_by_side(pair):
    first, second = random_ids(1, 8, seed=1), random_ids(1, 8, seed=2)
    _, one = pair.lowered.prefill(first)
    _, two = pair.lowered.prefill(second)
    token = random_ids(1, 1, seed=3)
    close(pair.lowered.decode(token, one)[0], pair.lowered.prefill(np.concatenate([first, token], 1))[0][:, -1:])
    close(pair.lowered.decode(token, two)[0], pair.lowered.prefill(np.concatenate([second, token], 1))[0][:, -1:])


def test_a_prefix_that_is_not_filled_in_is_noticed(tiny_llama_folder, tmp_path):
    pair = open_pair(tiny_llama_folder, tmp_path, quantised=False, prefix=True, without=EXACT)
    ids = random_ids(1, 6)
    expected, _ = pair.portable.prefill(ids)
    layout = pair.lowered._layout
    wrong = tuple(np.zeros_like(array) for array in layout.prefix)
    object.__setattr__(layout, "prefix", wrong)
    found, _ = pair.lowered.prefill(ids)
    assert np.abs(found - expected).max() > 100 * TOLERANCE


def test_the_form_follows_the_number_of_tokens(tiny_llama_folder, tmp_path):
    """Few tokens run in the decode form, wherever they come from; many in the prefill form."""
    lowered = open_pair(tiny_llama_folder, tmp_path, prefix=True, decode="weight-only").lowered
    ids = random_ids(1, 4)
    decode_form, _ = lowered.prefill(ids)
    lowered.settings = replace(lowered.settings, decode_rows=3)
    prefill_form, cache = lowered.prefill(ids)
    assert 1e-4 < np.abs(decode_form - prefill_form).max() < 0.2 * np.abs(prefill_form).max()
    batch = np.repeat(ids, 4, axis=0)
    _, cache = lowered.prefill(batch)
    lowered.decode(batch[:, :1], cache)
    assert cache.step._body is lowered._graphs.prefill
