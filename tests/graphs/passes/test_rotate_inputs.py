import numpy as np
import pytest
import torch
from spikeexport.calibration.foundation.errors import GraphError, PlanError
from spikeexport.calibration.input_transform import hadamard
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planned import planned
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.records.plan import InputSite, load_plan, save_plan
from spikeexport.calibration.structure.sites import discover
from spikeexport.graphs.passes.rotate_inputs import RotateInputs
from spikeexport.graphs.portable import build_portable

from tests.calibration.models import load
from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.same_function import DOWN, QKV, same_function_behind
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

SITES = (
    InputSite(name=QKV[0], linears=QKV, scale=1.0, rotation="r"),
    InputSite(name=DOWN, linears=(DOWN,), scale=1.0, rotation="r"),
)
TENSORS = {"r": np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)}


@pytest.mark.parametrize("variant", ["grouped", "all biases"])
def test_the_function_stays_the_same(llama_variant, tmp_path, variant):
    model = same_function_behind(RotateInputs(SITES, TENSORS), llama_variant(variant), tmp_path)
    assert [str(node.name) for node in model.graph if str(node.name).endswith("/Rotate")] == [
        f"{site.name}/input/Rotate" for site in SITES
    ]


def test_a_matrix_that_is_not_turned_back_would_show(grouped, tmp_path):
    expected, _ = call(open_session(named(grouped), tmp_path, "a"), IDS)
    model = named(grouped)
    RotateInputs(SITES, TENSORS)(model)
    matrix = next(value for name, value in model.graph.initializers.items() if name.startswith("r.f32"))
    matrix.const_value = type(matrix.const_value)(np.ascontiguousarray(TENSORS["r"].T), name=matrix.name)
    found, _ = call(open_session(model, tmp_path, "b"), IDS)
    assert np.abs(found - expected).max() > 0.01


def test_a_block_that_does_not_divide_the_input_is_refused(grouped):
    with pytest.raises(GraphError, match=f"{DOWN} reads 128 channels, the plan rotates blocks of 48"):
        RotateInputs(SITES[1:], {"r": np.eye(48, dtype=np.float32)})(named(grouped))


@pytest.mark.parametrize("smooth", ["auto", "rotate"])
def test_the_export_computes_what_the_plan_says(tiny_llama_folder, sample_text_file, tmp_path, smooth):
    checkpoint, model = load(tiny_llama_folder)
    wishes = {"samples": 4, "seqlen": 32, "qfem": "off", "qfep": "off", "smooth": smooth, "rounding": "gptq"}
    plan, tensors = make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **wishes))
    found, _ = call(open_session(build_portable(checkpoint, plan, tensors, dtype="fp32"), tmp_path, "c"), IDS)
    fresh = load(tiny_llama_folder)[1]
    exact = fresh(torch.from_numpy(IDS)).logits.detach().numpy()
    with planned(fresh, discover(fresh), plan, tensors):
        expected = fresh(torch.from_numpy(IDS)).logits.detach().numpy()
    # A code at the border of two steps may fall on either side.
    assert np.median(np.abs(found - expected)) < 0.01 * np.abs(expected).max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99


def test_a_recipe_with_a_matrix_that_is_not_orthogonal_is_refused(tiny_llama_folder, sample_text_file, tmp_path):
    checkpoint, model = load(tiny_llama_folder)
    wishes = {"samples": 4, "seqlen": 32, "qfem": "off", "qfep": "off"}
    plan, tensors = make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **wishes))
    save_plan(plan, tensors, tmp_path / "good.json")
    assert load_plan(tmp_path / "good.json")[0] == plan
    name = next(site.rotation for site in plan.sites if site.rotation)
    np.testing.assert_array_equal(tensors[name], hadamard(len(tensors[name])).numpy())
    save_plan(plan, {**tensors, name: tensors[name] * 1.01}, tmp_path / "bad.json")
    with pytest.raises(PlanError, match=f"{name} is not an orthogonal matrix"):
        load_plan(tmp_path / "bad.json")
