import numpy as np
import pytest
import torch
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planned import planned
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.records.plan import InputSite
from spikeexport.calibration.structure.sites import discover
from spikeexport.graphs.passes.linears import named_matmuls
from spikeexport.graphs.passes.shift_inputs import ShiftInputs
from spikeexport.graphs.portable import build_portable
from spikeexport.graphs.quantize import quantize_weight
from spikeexport.graphs.weights import lazy_weight

from tests.calibration.models import load
from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.same_function import DOWN, QKV, same_function_behind
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

SITES = (
    InputSite(name=QKV[0], linears=QKV, scale=1.0, shift="a"),
    InputSite(name=DOWN, linears=(DOWN,), scale=1.0, shift="b"),
)
SHIFTS = {
    "a": np.linspace(-2, 3, 64).astype(np.float32),
    "b": np.linspace(4, -1, 128).astype(np.float32),
}


@pytest.mark.parametrize("variant", ["grouped", "all biases"])
def test_the_function_stays_the_same(llama_variant, tmp_path, variant):
    model = same_function_behind(ShiftInputs(SITES, SHIFTS), llama_variant(variant), tmp_path)
    matmuls = named_matmuls(model.graph)
    assert {matmuls[linear].inputs[0].producer().op_type for linear in (*QKV, DOWN)} == {"Sub"}


def test_a_lost_bias_would_show(grouped, tmp_path):
    expected, _ = call(open_session(named(grouped), tmp_path, "a"), IDS)
    model = named(grouped)
    ShiftInputs(SITES, SHIFTS)(model)
    bias = model.graph.initializers[f"{DOWN}.bias"]
    bias.const_value = bias.const_value.changed(np.zeros_like)
    found, _ = call(open_session(model, tmp_path, "b"), IDS)
    assert np.abs(found - expected).max() > 0.01


@pytest.mark.parametrize("variant", ["grouped", "all biases"])
def test_what_is_given_back_is_what_the_int8_weight_makes_of_the_shift(llama_variant, variant):
    model = named(llama_variant(variant))
    weight = lazy_weight(model.graph.initializers[f"{DOWN}.weight_t"]).read_float32()
    bias = model.graph.initializers.get(f"{DOWN}.bias")
    before = 0 if bias is None else lazy_weight(bias).read_float32()
    codes = np.clip(np.rint(weight / np.abs(weight).max(0) * 127) + 1, -127, 127).astype(np.int8)
    scales = (np.abs(weight).max(0) / 127).astype(np.float32)
    for rounded, expected in (
        (None, quantize_weight(weight, scales) * scales),
        ({f"{DOWN}.weight_q": codes, f"{DOWN}.weight_scale": scales}, codes * scales),
    ):
        copy = named(llama_variant(variant))
        ShiftInputs(SITES[1:], SHIFTS, [DOWN], rounded)(copy)
        added = lazy_weight(copy.graph.initializers[f"{DOWN}.bias"]).read_float32() - before
        np.testing.assert_allclose(added, SHIFTS["b"] @ expected, rtol=1e-4, atol=1e-4)
        assert np.abs(added - SHIFTS["b"] @ weight).max() > 1e-3


def test_a_shift_of_another_length_is_refused(grouped):
    with pytest.raises(GraphError, match="reads 128 channels, the plan's shift has 64"):
        ShiftInputs(SITES[1:], {"b": SHIFTS["a"]})(named(grouped))


def test_outliertune_centres_every_quantised_input(tiny_llama_folder, sample_text_file, tmp_path):
    checkpoint, model = load(tiny_llama_folder)
    wishes = {"samples": 4, "seqlen": 32, "qfem": "off", "qfep": "off", "smooth": "outliertune", "rounding": "nearest"}
    plan, tensors = make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **wishes))
    assert all(site.shift in tensors for site in plan.sites)
    seen = []
    handle = model.get_submodule(DOWN).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    ids = checkpoint.tokenizer()(sample_text_file.read_text(), add_special_tokens=True).input_ids[:33]
    model(torch.tensor([ids]))
    handle.remove()
    # Behind the folds each channel reaches about the same distance from its centre: pre-executed dequantisation.
    site = next(site for site in plan.sites if site.name == DOWN)
    reach = (seen[0][0] - torch.from_numpy(tensors[site.shift])).abs().amax(0)
    top = site.scale * 127
    assert 0.3 * top < reach.median() < 1.3 * top
    assert (reach < 2 * top).float().mean() > 0.8
    found, _ = call(open_session(build_portable(checkpoint, plan, tensors, dtype="fp32"), tmp_path, "c"), IDS)
    fresh = load(tiny_llama_folder)[1]
    with planned(fresh, discover(fresh), plan, tensors):
        expected = fresh(torch.from_numpy(IDS)).logits.numpy()
    # A code at the border of two steps may fall on either side.
    assert np.median(np.abs(found - expected)) < 0.01 * np.abs(expected).max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.995
