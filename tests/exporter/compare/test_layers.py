"""Error by layer: what is read is the module's output, folds are undone, a planted fault is named."""

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.records.plan import save_plan
from spikeexport.compare.hooks import module_inputs, module_outputs
from spikeexport.compare.layers import LayerError, bad_alone, compare_layers, compare_modules, first_bad_layer
from spikeexport.compare.taps import TapSession, chunk_taps, find_taps
from spikeexport.graphs.reading import read_portable
from spikeexport.runners.subject import open_subject
from spikeexport.runners.torch_runner import TorchRunner
from spikeexport.write_portable import write_portable

from tests.exporter.compare.conftest import EXCLUDED, FAULTY, damaged, made_up_folds
from tests.naive_plan import naive_plan


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
    layers = compare_layers(exports / "folded.onnx", runner, windows).layers
    assert min(layer.snr_db for layer in layers) > 90
    assert min(layer.alone_snr_db for layer in layers if layer.kind == "linear") > 90
    plain = TapSession(exports / "plain.onnx", find_taps(*_graph(exports / "plain.onnx"))).run(windows)
    folded = TapSession(exports / "folded.onnx", find_taps(*_graph(exports / "folded.onnx"))).run(windows)
    up = "model.layers.0.mlp.up_proj"
    assert np.abs(plain[up] - folded[up]).max() > 0.1


@pytest.mark.parametrize("smooth", ["auto", "rotate", "shift"])
def test_shifts_and_rotations_are_undone(tiny_llama_folder, runner, windows, sample_text_file, tmp_path, smooth):
    checkpoint = open_checkpoint(tiny_llama_folder)
    wishes = {"samples": 8, "seqlen": 32, "qfem": "off", "qfep": "off", "smooth": smooth, "rounding": "gptq"}
    model = load_model(checkpoint)
    plan, tensors = make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **wishes))
    assert all(site.shift for site in plan.sites if "down" in site.name)
    write_portable(checkpoint, plan, tensors, tmp_path / "moved.onnx", dtype="fp32")
    layers = compare_layers(tmp_path / "moved.onnx", runner, windows).layers
    assert min(layer.snr_db for layer in layers) > 15
    assert min(layer.alone_snr_db for layer in layers if layer.kind == "linear") > 15


def test_int8_errors_are_small_and_marked(exports, runner, windows):
    layers = compare_layers(exports / "int8.onnx", runner, windows).layers
    by_name = {layer.name: layer for layer in layers}
    assert all(15 < layer.snr_db < 60 for layer in layers)
    assert by_name[EXCLUDED].quantized is False
    assert by_name[FAULTY].quantized is True
    assert by_name["model.layers.1"].quantized is None
    assert first_bad_layer(layers) is None


def test_behind_a_prefix_both_sides_see_it(exports, runner, windows):
    layers = compare_layers(exports / "prefixed.onnx", runner, windows).layers
    assert all(15 < layer.snr_db < 60 for layer in layers)


def test_a_planted_fault_is_the_first_bad_layer(faulty_onnx, runner, windows):
    assert first_bad_layer(compare_layers(faulty_onnx, runner, windows).layers) == FAULTY


@pytest.mark.parametrize(("tensor", "factor"), [("input_scale", 1 / 8), ("weight_scale", 1.5)])
def test_a_small_fault_is_named_though_nothing_falls_suddenly(exports, runner, windows, tmp_path, tensor, factor):
    """A scale that is wrong by a small factor in one layer is plain where nothing adds up."""
    path = damaged(exports, tmp_path, f"{FAULTY}.{tensor}", factor)
    found = compare_layers(path, runner, windows).layers
    assert first_bad_layer(found) == FAULTY
    assert bad_alone(found) == (FAULTY,)


def test_without_what_is_alone_a_sudden_fall_is_named():
    steps = [40.0, 38.0, 36.0, 35.0, 20.0, 19.0]
    layers = [LayerError(f"model.layers.{index}", "block", snr, 0.99, None) for index, snr in enumerate(steps)]
    assert first_bad_layer(layers) == "model.layers.4"
    assert first_bad_layer(layers[:4]) is None


def test_alone_nothing_adds_up(exports, runner, windows):
    found = compare_layers(exports / "int8.onnx", runner, windows)
    added, alone = zip(
        *((layer.snr_db, layer.alone_snr_db) for layer in found.layers if layer.kind == "linear"), strict=True
    )
    assert min(alone) > min(added)
    assert alone[-7] > added[-7]
    assert bad_alone(found.layers) == ()


def test_spikes_before_and_after(exports, runner, windows):
    for name in ("int8.onnx", "prefixed.onnx"):
        spikes = {site.name: site for site in compare_layers(exports / name, runner, windows).spikes}
        assert len(spikes) == 3 * 4
        first = spikes["model.layers.0.self_attn.q_proj"]
        fed = np.concatenate([[[1]], windows[:1, :-1]], axis=1)
        absmax = np.abs(module_inputs(runner, ["model.layers.0.self_attn.q_proj"], fed)[first.name]).max(axis=-1)[0]
        assert first.before == (pytest.approx(absmax.max()), pytest.approx(np.sort(absmax)[11]))
        # Layer 0 reads the embeddings: what stands in front changes them only where BOS itself was looked at.
        assert first.after[1] == pytest.approx(first.before[1], rel=0.2)


def test_folds_of_a_fake_quantised_model_are_undone(tiny_llama_folder, runner, windows, tmp_path):
    folds, tensors = made_up_folds()
    plan = naive_plan(runner.checkpoint, weights="fp").model_copy(update={"folds": folds})
    save_plan(plan, tensors, tmp_path / "recipe.json")
    with open_subject(f"{tiny_llama_folder}@{tmp_path / 'recipe.json'}") as folded:
        layers = compare_modules(folded, runner, windows).layers
    assert min(layer.snr_db for layer in layers) > 90


def test_two_pytorch_models_are_compared_inside(tiny_llama_folder, runner, windows, tmp_path):
    plan = naive_plan(runner.checkpoint, exclude=(EXCLUDED,), prefix=(9, 7, 1))
    save_plan(plan, {}, tmp_path / "recipe.json")
    with open_subject(f"{tiny_llama_folder}@{tmp_path / 'recipe.json'}") as fake:
        layers = {layer.name: layer for layer in compare_modules(fake, runner, windows).layers}
    assert len(layers) == 3 * 7 + 3
    assert all(15 < layer.snr_db < 60 for layer in layers.values())
    assert layers[EXCLUDED].quantized is False
    assert layers[FAULTY].quantized is True


def _graph(path):
    portable = read_portable(path)
    return portable.model.graph, portable.linears
