import numpy as np
import pytest
import torch
from spikeexport.calibration.fakequant import FakeQuantizer, fake_quantize_input, fake_quantize_weight
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.input_transform import InputTransform, block_for, hadamard, rotate
from spikeexport.calibration.rounding.round_plan import round_with_compensation
from spikeexport.calibration.smoothing.points import find_fold_points
from spikeexport.calibration.smoothing.solve import Smoothing, solve_folds
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows

DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("block", [16, 64, 512])
def test_the_matrix_is_orthogonal_with_entries_of_one_size(block):
    matrix = hadamard(block)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(block), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full((block, block), block**-0.5))


@pytest.mark.parametrize(
    ("channels", "block"), [(1536, 64), (11008, 64), (18944, 64), (48, 16), (104, None), (96, 32), (7, None)]
)
def test_the_block_is_a_power_of_two_that_divides_the_width(channels, block):
    assert block_for(channels) == block


def test_an_outlier_is_spread_over_its_block_alone():
    x = torch.zeros(128)
    x[70] = 8.0
    rotated = rotate(x, hadamard(64))
    torch.testing.assert_close(rotated[64:].abs(), torch.ones(64))
    assert not rotated[:64].any()


def test_input_and_weight_rotate_against_each_other():
    torch.manual_seed(0)
    x, weight, shift = torch.randn(5, 128), torch.randn(7, 128), torch.randn(128)
    transform = InputTransform(hadamard(64), shift)
    turned = transform.rotate(weight)
    torch.testing.assert_close(transform(x) @ turned.T + shift @ turned.T, x @ weight.T, atol=1e-4, rtol=1e-4)
    assert (x @ turned.T - x @ weight.T).abs().max() > 1


def test_fake_quantisation_works_in_the_rotated_basis(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    torch.manual_seed(1)
    x = torch.randn(3, model.config.intermediate_size)
    transform = InputTransform(hadamard(64), torch.linspace(-0.2, 0.3, model.config.intermediate_size))
    quantizer = FakeQuantizer(model, structure, transforms={DOWN: transform})
    module = model.get_submodule(DOWN)
    exact, weight = module(x), quantizer.weight(DOWN)
    by_hand = (fake_quantize_input(transform(x), 0.05) + transform.shift) @ weight.T
    with quantizer.active({DOWN: 0.05}):
        torch.testing.assert_close(module(x), by_hand, atol=1e-5, rtol=1e-4)
        assert 0 < (module(x) - exact).abs().max() < 0.1 * exact.abs().max()
    with quantizer.active({}):
        # Left out: neither is rotated.
        torch.testing.assert_close(module(x), x @ fake_quantize_weight(module.weight.detach()).T, atol=1e-5, rtol=1e-4)


def test_gptq_rounds_in_the_rotated_basis(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    structure, windows = discover(model), text_windows(checkpoint, sample_text, 4, 32)
    transform = InputTransform(hadamard(64))
    codes = round_with_compensation(model, structure, windows, Lead(bos=1), transforms={DOWN: transform})
    found = torch.from_numpy((codes[f"{DOWN}.weight_q"] * codes[f"{DOWN}.weight_scale"]).T)
    inputs = []
    handle = model.get_submodule(DOWN).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    with torch.inference_mode():
        for row in windows:
            model(input_ids=torch.tensor([[1, *row]]))
    handle.remove()
    x, weight = torch.cat(inputs), model.get_submodule(DOWN).weight.detach()

    def error(rotated):
        return float((transform.rotate(x) @ rotated.T - x @ weight.T).square().mean())

    nearest = FakeQuantizer(model, structure, transforms={DOWN: transform}).weight(DOWN)
    assert error(found) < 0.9 * error(nearest)


def test_folds_share_one_scale_in_each_rotated_block(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    points = find_fold_points(model, structure)
    torch.manual_seed(2)
    absmax = {site.name: torch.rand(site.channels) * 5 + 0.1 for site in structure.sites}
    method = Smoothing("folds", frozenset({"norm", "up_down", "v_o"}), 0.85)
    with torch.inference_mode():
        before = model(input_ids=torch.arange(9)[None]).logits
        rotations = {site.name: hadamard(64) for site in structure.sites if site.role == "down"}
        solved = solve_folds(model, points, method, absmax, rotations)
        after = model(input_ids=torch.arange(9)[None]).logits
    np.testing.assert_allclose(after, before, atol=2e-4)
    for name, scales in solved.input_scales.items():
        blocks = scales.view(-1, 64) if name in rotations else scales.view(1, -1)
        assert bool((blocks == blocks[:, :1]).all()) == (name in rotations)
        assert not bool((scales == scales[0]).all())
