import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikeexport.calibration.checkpoint import bos_id
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.profiler import profile_model
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.spikes import lower_median, spike_mask, spike_ratio
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows
from tests.tiny_models import plant_spike, token_id

INFO = CalibrationInfo(sources=("text",), samples=4, seqlen=48, seed=0, sha256="0" * 64)


@given(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=40))
def test_lower_median_is_torchs(values):
    assert lower_median(np.array(values, np.float32)) == torch.tensor(values).median().item()


def test_ratio_is_the_mean_of_ratios_not_the_ratio_of_pooled_values():
    absmax = np.array([[1.0, 1.0, 9.0], [100.0, 100.0, 300.0]], np.float32)
    assert spike_ratio(absmax) == pytest.approx((9.0 + 3.0) / 2)


def test_dead_input_has_ratio_one():
    assert spike_ratio(np.zeros((2, 5), np.float32)) == 1.0


def test_mask_wants_more_than_the_factor():
    assert spike_mask(np.array([[1.0, 1.0, 1.0, 64.0]], np.float32)).sum() == 0
    assert spike_mask(np.array([[1.0, 1.0, 1.0, 64.5]], np.float32)).tolist() == [[False, False, False, True]]


def test_statistics_equal_an_independent_loop(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    windows = text_windows(checkpoint, sample_text, 3, 20)
    bos = bos_id(checkpoint)
    found = observe_sites(model, discover(model), windows, Lead(bos=bos), batch=2)
    name = "model.layers.1.mlp.down_proj"
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for row in windows:
        model(input_ids=torch.tensor([[bos, *row]]), use_cache=False)
    handle.remove()
    x = torch.cat(seen)
    np.testing.assert_allclose(found[name].token_absmax, x.abs().amax(-1).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[name].ranges.high, x.flatten(0, 1).amax(0).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[name].ranges.low, x.flatten(0, 1).amin(0).numpy(), rtol=1e-4, atol=1e-6)


def test_a_planted_spike_is_found_with_its_token_and_count(tmp_path, sample_text):
    token = token_id("e")
    checkpoint, model = load(plant_spike(tmp_path / "spiky", token, layer=1, ratio=1000.0))
    windows = text_windows(checkpoint, sample_text, 4, 48)
    windows[windows == token] = token_id("a")
    windows[0, 7] = windows[2, 9] = windows[2, 30] = token
    profile = profile_model(checkpoint, model, windows, INFO)
    assert profile.modules[0].name == "model.layers.1.mlp.down_proj"
    assert profile.modules[0].ratio == pytest.approx((1000 + 1000) / 4 + 1.0, rel=0.25)
    assert profile.modules[1].ratio < 20
    assert [(spike.id, spike.module, spike.count) for spike in profile.spike_tokens] == [
        (token, "model.layers.1.mlp.down_proj", 3)
    ]
    assert profile.spike_tokens[0].text == "e"
    assert profile.spike_tokens[0].position in {8, 10, 31}


def test_a_model_without_spikes_has_none(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    profile = profile_model(checkpoint, model, text_windows(checkpoint, sample_text, 4, 48), INFO)
    assert profile.spike_tokens == ()
    assert all(layer.massive == 0 for layer in profile.hidden_states)
    assert len(profile.hidden_states) == model.config.num_hidden_layers
    assert len(profile.modules) == 7 * model.config.num_hidden_layers
