"""The KV cache's two sets of buffers, on the CPU's memory: turns, growth, shapes."""

from __future__ import annotations

import pytest
import torch
from spikeexport.backends.tensorrt.kv_cache import CacheEntry, DeviceKvCache, present_name

ENTRIES = [
    CacheEntry(f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}", 2, 8, torch.float16)
    for layer in range(2)
    for kind in ("key", "value")
]


@pytest.fixture
def cache() -> DeviceKvCache:
    return DeviceKvCache(ENTRIES, batch=3, device="cpu")


def test_names():
    assert present_name("past_key_values.11.value") == "present.11.value"


def test_empty_cache_still_has_addresses(cache):
    assert dict(cache.shapes()) == {entry.past: (3, 2, 0, 8) for entry in ENTRIES}
    addresses = dict(cache.addresses())
    assert set(addresses) == {name for entry in ENTRIES for name in (entry.past, entry.present)}
    assert all(addresses.values())


def test_present_becomes_past(cache):
    cache.make_room(5)
    written = dict(cache.addresses())
    cache.advance(5)
    assert cache.tokens == 5
    assert dict(cache.shapes())["past_key_values.0.key"] == (3, 2, 5, 8)
    assert dict(cache.addresses())["past_key_values.1.value"] == written["present.1.value"]


def test_room_is_made_with_reserve_and_not_at_every_token(cache):
    cache.make_room(10)
    cache.advance(10)
    cache.make_room(1)
    cache.advance(1)
    settled = {address for _, address in cache.addresses()}
    for _ in range(4):
        cache.make_room(1)
        assert {address for _, address in cache.addresses()} == settled
        cache.advance(1)
    assert cache.tokens == 15


def test_buffers_hold_the_whole_present(cache):
    for new in (3, 1, 40, 1):
        cache.make_room(new)
        assert all(buffer.numel() >= 3 * 2 * (cache.tokens + new) * 8 for buffer in cache._present)
        cache.advance(new)
