import numpy as np
import pytest
import torch
from spikeexport.calibration.checkpoint import bos_id
from spikeexport.calibration.fakequant import weight_scale
from spikeexport.calibration.forward import Lead, windows_with_lead
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.rounding.gptq import BLOCK, damped, gptq_codes
from spikeexport.calibration.rounding.moments import layer_groups, site_moments
from spikeexport.calibration.structure.sites import discover
from spikeexport.graphs.portable import build_portable

from tests.calibration.models import load, text_windows


def correlated_inputs(channels, tokens=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels // 4, channels, generator=generator)
    x = torch.randn(tokens, channels // 4, generator=generator) @ mixing
    return x + 0.05 * torch.randn(tokens, channels, generator=generator)


def output_error(weight, codes, scale, x):
    return float(((codes.float() * scale - weight) @ x.T).pow(2).sum())


@pytest.mark.parametrize(("bits", "channels"), [(8, 64), (4, BLOCK + 40)])
def test_compensation_lowers_the_output_error(bits, channels):
    x = correlated_inputs(channels)
    weight = torch.randn(24, channels, generator=torch.Generator().manual_seed(1))
    scale, limit = weight_scale(weight, bits), 2 ** (bits - 1) - 1
    nearest = torch.clamp(torch.round(weight / scale), -limit, limit)
    codes = gptq_codes(weight, scale, damped(x.T @ x / len(x)), bits)
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= limit
    # Correlated inputs leave most directions free; without compensation the ratio would be 1.
    assert output_error(weight, codes, scale, x) < 0.5 * output_error(weight, nearest, scale, x)


def test_uncorrelated_inputs_give_the_nearest_codes():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    scale = weight_scale(weight)
    codes = gptq_codes(weight, scale, torch.diag(torch.rand(32) + 0.1))
    assert torch.equal(codes.float(), torch.round(weight / scale))


def test_moments_do_not_depend_on_how_layers_are_grouped(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    structure, lead = discover(model), Lead(bos=bos_id(checkpoint))
    windows = text_windows(checkpoint, sample_text, 3, 16)
    assert layer_groups(structure, 0) == [range(0, 1), range(1, 2), range(2, 3)]
    assert layer_groups(structure, 1 << 30) == [range(0, 3)]
    together = {site.name: found for site, found in site_moments(model, structure, windows, lead)}
    apart = {site.name: found for site, found in site_moments(model, structure, windows, lead, budget_bytes=0)}
    for name, moments in together.items():
        torch.testing.assert_close(apart[name], moments)
    name = "model.layers.1.mlp.down_proj"
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=torch.from_numpy(windows_with_lead(windows, lead)), use_cache=False)
    handle.remove()
    flat = seen[0].flatten(0, 1)
    torch.testing.assert_close(together[name], flat.T @ flat / len(flat))


def test_the_graph_holds_the_plans_codes(tiny_llama_folder, sample_text_file):
    checkpoint, model = load(tiny_llama_folder)
    wishes = {"samples": 4, "seqlen": 32, "qfep": "off", "qfem": "first-last:1", "rounding": "gptq"}
    plan, tensors = make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **wishes))
    assert plan.rounding == "gptq"
    assert set(plan.excluded_linears) == {f"model.layers.{layer}.mlp.down_proj" for layer in (0, 2)}
    graph = build_portable(checkpoint, plan, tensors, dtype="fp32").graph
    nearest = build_portable(checkpoint, plan.model_copy(update={"rounding": "nearest"}), tensors, dtype="fp32").graph
    differing = 0
    for linear in plan.int8_weights:
        codes = graph.initializers[f"{linear}.weight_q"].const_value.numpy()
        assert np.array_equal(codes, tensors[f"{linear}.weight_q"])
        plain = nearest.initializers[f"{linear}.weight_q"].const_value.numpy()
        assert np.abs(codes.astype(int) - plain).max() <= 3
        differing += int((codes != plain).sum())
    assert differing > 0
