"""MODEL@RECIPE gives the numbers of the file that the same recipe exports."""

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.records.plan import save_plan
from spikeexport.compare.compare import compare
from spikeexport.runners.fakequant_runner import FakeQuantRunner
from spikeexport.runners.subject import open_subject, subject_kind
from spikeexport.write_portable import write_portable

from tests.exporter.compare.conftest import made_up_folds
from tests.naive_plan import naive_plan

EXCLUDED = {"w8a16": "model.layers.2.mlp.down_proj", "fp32": "model.layers.0.self_attn.k_proj"}


@pytest.fixture(scope="module", params=["plain", "prefix and folds", "shift and codes"])
def pair(request, tiny_llama_folder, sample_text_file, tmp_path_factory):
    """The same plan as MODEL@RECIPE and as an .onnx."""
    folder = tmp_path_factory.mktemp("fakequant")
    checkpoint = open_checkpoint(tiny_llama_folder)
    if request.param == "shift and codes":
        wishes = {"samples": 4, "seqlen": 32, "qfem": "off", "smooth": "auto", "rounding": "gptq"}
        plan, tensors = make_plan(
            checkpoint, load_model(checkpoint), PlanOptions(calibration=(str(sample_text_file),), **wishes)
        )
        assert plan.rounding == "gptq"
        assert any(site.shift for site in plan.sites)
    else:
        plan, tensors = _by_hand(checkpoint, (9, 7, 1) if request.param != "plain" else ())
    save_plan(plan, tensors, folder / "recipe.json")
    write_portable(checkpoint, plan, tensors, folder / "same.onnx", dtype="fp32")
    return f"{tiny_llama_folder}@{folder / 'recipe.json'}", folder / "same.onnx"


def _by_hand(checkpoint, prefix):
    plan = naive_plan(checkpoint, prefix=prefix, exclude=EXCLUDED.values())
    kept = [one.model_copy(update={"precision": name}) for name, one in zip(EXCLUDED, plan.excluded, strict=True)]
    folds, tensors = made_up_folds() if prefix else ((), {})
    plan = plan.model_copy(update={"excluded": tuple(kept), "folds": folds})
    if folds:
        # The scales were measured before the folds: a generous one keeps everything within the INT8 range.
        wider = [site.model_copy(update={"scale": site.scale * 20}) for site in plan.sites if "layers.0" in site.name]
        others = [site for site in plan.sites if "layers.0" not in site.name]
        plan = plan.model_copy(update={"sites": (*wider, *others)})
    return plan, tensors


def test_logits_are_those_of_the_export(pair):
    subject, onnx = pair
    assert subject_kind(subject) == "fakequant"
    ids = np.random.default_rng(1).integers(3, 300, (2, 30))
    mask = np.ones_like(ids)
    mask[1, :7] = 0
    with open_subject(subject) as fake, open_subject(onnx) as exported:
        assert isinstance(fake, FakeQuantRunner)
        found, cache = fake.prefill(ids, mask)
        expected, other = exported.prefill(ids, mask)
        # Rounding to INT8 is a step function: a difference in the last bit may move a value by one step.
        close = np.isclose(found, expected, atol=0.02)[mask.astype(bool)]
        assert close.mean() > 0.98
        step, _ = fake.decode(ids[:, :1], cache)
        assert np.isclose(step, exported.decode(ids[:, :1], other)[0], atol=0.02).mean() > 0.98


def test_both_are_compared_like_any_other(pair, sample_text_file):
    subject, onnx = pair
    settings = {"windows": 2, "seqlen": 24, "layers": False, "generations": 1}
    data = compare(subject, onnx, str(sample_text_file), **settings).to_json()
    assert data["kl_divergence"] < 1e-3
    assert data["perplexity"]["ratio"] == pytest.approx(1, abs=1e-3)
    assert data["candidate_facts"]


def test_a_missing_recipe_is_said(tiny_llama_folder, tmp_path):
    with pytest.raises(SpikeExportError, match=r"gone\.json does not exist"):
        subject_kind(f"{tiny_llama_folder}@{tmp_path / 'gone.json'}")
