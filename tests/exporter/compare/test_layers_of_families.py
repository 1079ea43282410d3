"""Error by layer where norms add one to their weight, and where experts see only some tokens."""

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.compare.layers import compare_layers
from spikeexport.runners.torch_runner import TorchRunner
from spikeexport.write_portable import write_portable

from tests.exporter.compare.conftest import made_up_folds
from tests.naive_plan import naive_plan
from tests.tiny_models import tiny_family


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(3, 300, (2, 24))


def exported(family, folder, folds, tensors):
    checkpoint = open_checkpoint(tiny_family(family, folder / family))
    plan = naive_plan(checkpoint, weights="fp").model_copy(update={"folds": folds})
    write_portable(checkpoint, plan, tensors, folder / "model.onnx", dtype="fp32")
    return folder / "model.onnx", TorchRunner(checkpoint)


def test_folds_of_gemmas_norms_are_undone(windows, tmp_path):
    onnx, runner = exported("gemma", tmp_path, *made_up_folds())
    layers = compare_layers(onnx, runner, windows).layers
    assert len(layers) == 3 * 7 + 3
    assert min(layer.snr_db for layer in layers) > 90
    assert min(layer.alone_snr_db for layer in layers if layer.kind == "linear") > 90


def test_a_mixture_of_experts_is_compared_without_its_experts(windows, tmp_path):
    onnx, runner = exported("mixtral", tmp_path, (), {})
    inside = compare_layers(onnx, runner, windows)
    names = {layer.name for layer in inside.layers}
    assert {"model.layers.2.self_attn.o_proj", "model.layers.2"} <= names
    assert not any("expert" in name for name in names)
    assert min(layer.snr_db for layer in inside.layers) > 90
    assert inside.spikes
