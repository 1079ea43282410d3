"""The engine runner's own work, with ONNX Runtime in the engine's place; a real engine is a `gpu` test."""

from __future__ import annotations

import numpy as np
import pytest
from spikeexport.backends.manifest import EngineManifest, EngineTruth
from spikeexport.backends.tensorrt.profiles import DECODE, PREFILL
from spikeexport.backends.tensorrt.runner import EngineRunner
from spikeexport.calibration.foundation.errors import BackendError

from tests.constant_plan import write_portable
from tests.exporter.backends.tensorrt.onnx_session import OnnxSession
from tests.graphs.decoder_runs import call

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def session(tiny_llama_folder, tmp_path_factory) -> OnnxSession:
    return OnnxSession(
        write_portable(tiny_llama_folder, tmp_path_factory.mktemp("portable") / "tiny.onnx", dtype="fp32")
    )


@pytest.fixture
def runner(session, tiny_llama_folder) -> EngineRunner:
    manifest = EngineManifest(
        backend="tensorrt",
        model="tiny",
        plan_sha256=None,
        onnx_sha256="0" * 64,
        linears=21,
        excluded=(),
        prefix=None,
        files=(),
        truth=EngineTruth(planned=()),
        target={"max_batch": 2, "max_seq": 32},
        versions={},
    )
    session.profiles.clear()
    return EngineRunner(session, tiny_llama_folder, manifest)


def _tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, 300, (batch, length))


def _whole(session: OnnxSession, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    return call(session._session, ids, mask)[0]


def test_decoding_token_by_token_and_in_a_chunk_is_one_prefill(runner, session):
    ids = _tokens(1, 20)
    expected = _whole(session, ids)
    found, cache = runner.prefill(ids[:, :9])
    pieces = [found]
    for position in range(9, 15):
        found, cache = runner.decode(ids[:, position : position + 1], cache)
        pieces.append(found)
    found, cache = runner.decode(ids[:, 15:], cache)
    pieces.append(found)
    assert np.abs(np.concatenate(pieces, axis=1) - expected).max() < TOLERANCE
    assert session.profiles == [PREFILL, *[DECODE] * 6, PREFILL]
    assert cache.kv.tokens == 20


def test_left_padding_gives_each_row_its_own_positions(runner, session):
    ids = _tokens(2, 12)
    mask = np.ones_like(ids)
    mask[0, :4] = 0
    first, cache = runner.prefill(ids[:, :11], mask[:, :11])
    last, _ = runner.decode(ids[:, 11:], cache)
    alone = _whole(session, ids[:1, 4:])
    assert np.abs(first[0, 4:] - alone[0, :-1]).max() < TOLERANCE
    assert np.abs(last[0, 0] - alone[0, -1]).max() < TOLERANCE
    assert np.abs(last[1, 0] - _whole(session, ids[1:])[0, -1]).max() < TOLERANCE


def test_last_only(runner):
    ids = _tokens(2, 8)
    whole, _ = runner.prefill(ids)
    last, _ = runner.prefill(ids, last_only=True)
    assert last.shape == (2, 1, whole.shape[2])
    np.testing.assert_array_equal(last[:, 0], whole[:, -1])


def test_two_sequences_do_not_share_a_cache(runner):
    ids = _tokens(1, 10)
    _, first = runner.prefill(ids[:, :5])
    runner.prefill(ids[:, 5:])
    expected, _ = runner.prefill(ids[:, :6])
    found, _ = runner.decode(ids[:, 5:6], first)
    assert np.abs(found[:, 0] - expected[:, 5]).max() < TOLERANCE


def test_attributes(runner, session):
    assert (runner.max_batch, runner.max_positions) == (2, 32)
    assert runner.vocab_size == session.shape("logits")[-1] == 384
    assert runner.prefix_ids == ()


def test_more_than_was_built_for_is_refused_with_the_cure(runner):
    with pytest.raises(BackendError, match="--max-batch or --max-seq"):
        runner.prefill(_tokens(3, 4))
    _, cache = runner.prefill(_tokens(1, 32))
    with pytest.raises(BackendError, match="1 x 33 were given"):
        runner.decode(_tokens(1, 1), cache)
