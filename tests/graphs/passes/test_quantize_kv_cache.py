"""INT8 KV cache: what it costs, that chunks do not matter, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.kv_scales import measure_kv_scales
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.passes.quantize_kv_cache import QuantizeKvCache
from spikeexport.graphs.portable import build_unquantised

from tests.graphs.decoder_runs import call, feeds, open_session
from tests.lowered_models import empty_plan

PREFIX = (7, 300, 1)
IDS = np.random.default_rng(1).integers(3, 380, (2, 14)).astype(np.int64)


@pytest.fixture(scope="module", params=[PREFIX, ()], ids=["prefix", "no-prefix"])
def graphs(request, grouped):
    """A builder of the unquantised FP32 graph, and the scales for it."""
    model = load_model(grouped)
    lead = Lead(prefix=request.param) if request.param else Lead(bos=1)
    scales = measure_kv_scales(model, np.random.default_rng(0).integers(3, 380, (4, 32)), lead)
    prefix = prefix_arrays(model, request.param)
    return (lambda dtype="fp32": build_unquantised(grouped, empty_plan(grouped), {}, prefix, dtype)), scales


def test_logits_move_a_little_and_past_is_int8(graphs, tmp_path):
    build, scales = graphs
    expected, _ = call(open_session(build(), tmp_path, "plain"), IDS)
    quantised = build()
    QuantizeKvCache(scales)(quantised)
    session = open_session(quantised, tmp_path)
    found, past = int8_call(session, IDS)
    assert 1e-5 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05
    assert {array.dtype for array in past.values()} == {np.dtype(np.int8)}
    assert max(np.abs(array.astype(int)).max() for array in past.values()) > 100


def test_chunks_and_single_tokens_give_the_same_as_one_call(graphs, tmp_path):
    build, scales = graphs
    model = build()
    QuantizeKvCache(scales)(model)
    session = open_session(model, tmp_path)
    whole, cache = int8_call(session, IDS)
    logits, past = int8_call(session, IDS[:, :5])
    parts = [logits]
    for start, end in ((5, 6), (6, 7), (7, 14)):
        logits, past = int8_call(session, IDS[:, start:end], past)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    assert all(np.abs(past[name].astype(int) - cache[name]).max() <= 1 for name in cache)


def test_values_beyond_the_calibrated_range_saturate(graphs, tmp_path):
    build, scales = graphs
    model = build()
    QuantizeKvCache({name: scale / 8 for name, scale in scales.items()})(model)
    logits, past = int8_call(open_session(model, tmp_path), IDS)
    assert np.isfinite(logits).all()
    codes = np.concatenate([array.ravel() for array in past.values()])
    assert (codes.min(), codes.max()) == (-128, 127)


def test_graph_is_valid_in_half_precision_and_stays_as_it_is_the_second_time(graphs, tmp_path):
    build, scales = graphs
    model = build("fp16")
    assert QuantizeKvCache(scales)(model).modified
    assert not QuantizeKvCache(scales)(model).modified
    open_session(model, tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    ends = [*model.graph.inputs, *model.graph.outputs]
    assert {value.dtype for value in ends if ".key" in str(value.name)} == {ir.DataType.INT8}
    prefix = [
        value for name, value in model.graph.initializers.items() if name.startswith("prefix.") and ".key" in name
    ]
    assert all(value.dtype == ir.DataType.FLOAT16 for value in prefix)


def test_scales_of_another_model_are_refused(graphs):
    build, scales = graphs
    with pytest.raises(PlanError, match=r"kv\.1\.key have shape \[2, 8\], the graph's cache \[2, 16\]"):
        QuantizeKvCache({**scales, "kv.1.key": np.ones((2, 8), np.float32)})(build())
    with pytest.raises(PlanError, match=r"kv\.0\.key have shape none"):
        QuantizeKvCache({})(build())


def int8_call(session, ids, past=None):
    """Runs one call whose cache is int8; returns logits and the cache for the next call."""
    values = feeds(session, ids, None, past)
    for name in [name for name in values if name.startswith("past_key_values.")]:
        values[name] = values[name].astype(np.int8)
    names = [spec.name for spec in session.get_outputs()]
    results = dict(zip(names, session.run(names, values), strict=True))
    return results["logits"], {
        name: results[name.replace("past_key_values.", "present.")]
        for name in values
        if name.startswith("past_key_values.")
    }
