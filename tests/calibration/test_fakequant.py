import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from spikeexport.calibration.fakequant import FakeQuantizer, fake_quantize_input, fake_quantize_weight, token_scale
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load

IDS = torch.arange(12)[None]


@given(arrays(np.float32, (3, 8), elements=st.floats(-1000, 1000, width=32)))
def test_weights_lie_on_their_grid_and_near(weight):
    fake = fake_quantize_weight(torch.from_numpy(weight)).numpy()
    step = np.abs(weight).max(1, keepdims=True) / 127
    codes = np.where(step > 0, fake / np.where(step > 0, step, 1), 0)
    assert np.abs(codes).max() <= 127.001
    assert np.abs(codes - np.round(codes)).max() < 1e-3
    assert (np.abs(fake - weight) <= 0.5001 * step + 1e-12).all()


def test_inputs_round_half_to_even_and_saturate():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 200.0, -200.0])
    assert fake_quantize_input(x, 1.0).tolist() == [0.0, 2.0, 2.0, -0.0, 127.0, -128.0]


def test_dynamic_scale_is_one_per_token():
    x = torch.tensor([[1.0, -127.0], [0.5, 0.25]])
    torch.testing.assert_close(token_scale(x), torch.tensor([[1.0], [0.5 / 127]]))


def test_active_quantises_and_leaves_no_trace(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    before = model(IDS).logits
    quantizer = FakeQuantizer(model, structure)
    with quantizer.active(dict.fromkeys((site.name for site in structure.sites), None)):
        quantized = model(IDS).logits
    error = (quantized - before).abs().max() / before.abs().max()
    assert 1e-4 < error < 0.1
    assert torch.equal(model(IDS).logits, before)


def test_one_linear_equals_numpy(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    name, scale = "model.layers.0.mlp.down_proj", 0.01
    module = model.get_submodule(name)
    x = torch.randn(5, module.in_features, generator=torch.Generator().manual_seed(1))
    with FakeQuantizer(model, structure).active({name: scale}):
        y = module(x).numpy()
    weight = module.weight.numpy().astype(np.float64)
    step = np.abs(weight).max(1, keepdims=True) / 127
    codes = np.clip(np.rint(x.numpy() / np.float32(scale)), -128, 127).astype(np.int64)
    wanted = (codes @ np.rint(weight / step).astype(np.int64).T) * step.T * scale
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
