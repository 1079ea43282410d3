"""Error by layer: what is read is the module's output, folds are undone, a planted fault is named."""

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.compare.hooks import module_outputs
from spikeexport.compare.layers import compare_layers, first_bad_layer
from spikeexport.compare.taps import TapSession, chunk_taps, find_taps
from spikeexport.graphs.reading import read_portable
from spikeexport.runners.torch_runner import TorchRunner

from tests.exporter.compare.conftest import EXCLUDED, FAULTY


@pytest.fixture(scope="module")
def runner(tiny_llama_folder):
    return TorchRunner(open_checkpoint(tiny_llama_folder))


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(3, 300, (2, 24))


def test_taps_are_every_linear_and_block_in_order(exports):
    portable = read_portable(exports / "int8.onnx")
    taps = find_taps(portable.model.graph, portable.linears)
    assert {tap.module for tap in taps if tap.kind == "linear"} == set(portable.linears)
    assert [tap.module for tap in taps if tap.kind == "block"] == [f"model.layers.{i}" for i in range(3)]
    names = [tap.module for tap in taps]
    assert (
        names.index("model.layers.0.mlp.down_proj")
        < names.index("model.layers.0")
        < names.index("model.layers.1.self_attn.q_proj")
    )


def test_chunks_hold_everything_once_within_the_limit(exports):
    portable = read_portable(exports / "int8.onnx")
    taps = find_taps(portable.model.graph, portable.linears)
    chunks = list(chunk_taps(taps, tokens=10, limit_bytes=10 * 4 * 300))
    assert [tap for chunk in chunks for tap in chunk] == taps
    assert len(chunks) > 3
    assert all(sum(tap.width for tap in chunk) <= 300 for chunk in chunks)


def test_both_sides_read_the_same_tensors(exports, runner, windows):
    portable = read_portable(exports / "plain.onnx")
    taps = find_taps(portable.model.graph, portable.linears)
    found = TapSession(portable.path, taps).run(windows)
    expected = module_outputs(runner, [tap.module for tap in taps], windows)
    assert set(found) == set(expected)
    for module, output in found.items():
        np.testing.assert_allclose(output, expected[module], atol=2e-4, err_msg=module)


def test_folds_are_undone(exports, runner, windows):
    errors = {layer.name: layer for layer in compare_layers(exports / "folded.onnx", runner, windows)}
    assert min(layer.snr_db for layer in errors.values()) > 90
    plain = TapSession(exports / "plain.onnx", find_taps(*_graph(exports / "plain.onnx"))).run(windows)
    folded = TapSession(exports / "folded.onnx", find_taps(*_graph(exports / "folded.onnx"))).run(windows)
    up = "model.layers.0.mlp.up_proj"
    assert np.abs(plain[up] - folded[up]).max() > 0.1


def test_int8_errors_are_small_and_marked(exports, runner, windows):
    layers = compare_layers(exports / "int8.onnx", runner, windows)
    by_name = {layer.name: layer for layer in layers}
    assert all(15 < layer.snr_db < 60 for layer in layers)
    assert by_name[EXCLUDED].quantized is False
    assert by_name[FAULTY].quantized is True
    assert by_name["model.layers.1"].quantized is None
    assert first_bad_layer(layers) is None


def test_behind_a_prefix_both_sides_see_it(exports, runner, windows):
    layers = compare_layers(exports / "prefixed.onnx", runner, windows)
    assert all(15 < layer.snr_db < 60 for layer in layers)


def test_a_planted_fault_is_the_first_bad_layer(faulty_onnx, runner, windows):
    assert first_bad_layer(compare_layers(faulty_onnx, runner, windows)) == FAULTY


def _graph(path):
    portable = read_portable(path)
    return portable.model.graph, portable.linears
