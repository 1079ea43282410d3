import json

import numpy as np
import pytest
import torch
from spikeexport.calibration.fakequant import Bits
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.foundation.errors import PlanError, UsageError
from spikeexport.calibration.input_transform import InputTransform
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.plan_windows import plan_windows
from spikeexport.calibration.planned import planned
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.profiler import profile_model
from spikeexport.calibration.qfem import weight_shares
from spikeexport.calibration.quality import Reference, evaluate
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.records.plan import load_plan, save_plan
from spikeexport.calibration.smoothing.apply import apply_folds
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows
from tests.tiny_models import plant_spike, token_id

SMALL = {"samples": 4, "seqlen": 32}


@pytest.fixture(scope="module")
def spiky_folder(tmp_path_factory):
    return plant_spike(tmp_path_factory.mktemp("spiky"), token_id("e"), layer=1, ratio=500.0)


def plan_of(folder, text_file, **wishes):
    checkpoint, model = load(folder)
    options = PlanOptions(calibration=(str(text_file),), **{**SMALL, **wishes})
    return make_plan(checkpoint, model, options), discover(load(folder)[1])


def test_every_linear_is_in_a_site_or_excluded(spiky_folder, sample_text_file):
    (plan, tensors), structure = plan_of(spiky_folder, sample_text_file)
    covered = (*plan.quantized_linears, *plan.excluded_linears)
    assert sorted(covered) == sorted(structure.linears)
    assert all(np.isfinite(site.scale) and site.scale > 0 for site in plan.sites)
    needed = {fold.scales for fold in plan.folds} | {site.shift for site in plan.sites if site.shift}
    needed |= {site.rotation for site in plan.sites if site.rotation}
    changed = {site.name for site in plan.sites if site.shift and site.rotation}
    assert changed == {name for name in plan.quantized_linears if "down" in name}
    if plan.rounding == "gptq":
        needed |= {f"{linear}.{kind}" for linear in plan.int8_weights for kind in ("weight_q", "weight_scale")}
    assert needed == set(tensors)
    assert plan.trade_off[0].sites == 0
    assert plan.alpha is None


def test_the_same_wishes_give_the_same_plan(spiky_folder, sample_text_file):
    (first, tensors), _ = plan_of(spiky_folder, sample_text_file)
    (second, again), _ = plan_of(spiky_folder, sample_text_file)
    assert first.digest() == second.digest()
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)


def test_alpha_is_the_papers_rule(spiky_folder, sample_text_file):
    (plan, _), _ = plan_of(spiky_folder, sample_text_file, qfem="50", qfep="off", smooth="off")
    assert plan.excluded_linears == ("model.layers.1.mlp.down_proj",)
    assert "ratio" in plan.excluded[0].why
    assert plan.alpha == 50.0
    assert plan.folds == ()
    assert plan.prefix is None


def test_wishes_are_obeyed(spiky_folder, sample_text_file):
    (plan, _), _ = plan_of(
        spiky_folder,
        sample_text_file,
        qfem="off",
        qfep="ids:5,1",
        smooth="smoothquant",
        exclude=("*.0.mlp.up_proj",),
        excluded_precision="fp16",
    )
    assert plan.prefix is not None
    assert plan.prefix.ids == (5, 1)
    assert plan.excluded_linears == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
    assert {exclusion.precision for exclusion in plan.excluded} == {"fp16"}
    assert {fold.kind for fold in plan.folds} == {"norm"}
    with pytest.raises(UsageError, match="--smooth"):
        plan_of(spiky_folder, sample_text_file, smooth="magic")


def test_a_profile_brings_its_ratios(spiky_folder, sample_text_file, sample_text, tmp_path, tiny_llama_folder):
    checkpoint, model = load(spiky_folder)
    info = CalibrationInfo(sources=("text",), samples=4, seqlen=32, seed=0, sha256="0" * 64)
    path = tmp_path / "profile.json"
    profile_model(checkpoint, model, text_windows(checkpoint, sample_text, 4, 32), info).save(path)
    data = json.loads(path.read_text())
    for module in data["modules"]:
        module["ratio"] = 900.0 if module["name"] == "model.layers.2.self_attn.o_proj" else 2.0
    path.write_text(json.dumps(data))
    (plan, _), _ = plan_of(spiky_folder, sample_text_file, profile=path, qfem="100", qfep="off")
    assert plan.excluded_linears == ("model.layers.2.self_attn.o_proj",)
    with pytest.raises(PlanError, match="was made for"):
        plan_of(tiny_llama_folder, sample_text_file, profile=path)


def test_a_saved_plan_comes_back_to_the_bit(spiky_folder, sample_text_file, tmp_path):
    (plan, tensors), _ = plan_of(spiky_folder, sample_text_file, rounding="gptq")
    path = tmp_path / "recipe.json"
    save_plan(plan, tensors, path)
    again, vectors = load_plan(path)
    assert again == plan
    assert all(np.array_equal(vectors[key], tensors[key]) for key in tensors)
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(PlanError, match="is missing"):
        load_plan(path)
    data = json.loads(path.read_text())
    data["sites"][0]["colour"] = "red"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"sites\.0\.colour"):
        load_plan(path)


@pytest.mark.parametrize("budget", [0.0, 0.2])
def test_exclusions_keep_to_their_budget(spiky_folder, sample_text_file, budget):
    wishes = {"smooth": "off", "scales": "absmax", "qfep": "off", "rounding": "nearest"}
    (plan, _), structure = plan_of(spiky_folder, sample_text_file, max_excluded=budget, **wishes)
    shares = weight_shares(structure, load(spiky_folder)[1])
    out = [site.name for site in structure.sites if set(site.linears) & set(plan.excluded_linears)]
    assert sum(shares[site] for site in out) <= budget + 1e-9
    assert ("model.layers.1.mlp.down_proj" in plan.excluded_linears) == (budget > 0)
    assert all(exclusion.ratio is not None for exclusion in plan.excluded)


def test_fewer_activation_bits_cost_more(spiky_folder, sample_text_file, sample_text):
    (plan, tensors), structure = plan_of(spiky_folder, sample_text_file, qfep="off", qfem="off")
    checkpoint, model = load(spiky_folder)
    windows, lead, kept = text_windows(checkpoint, sample_text, 2, 32), Lead(bos=1), []
    before = evaluate(model, windows, lead, keep=kept)
    divergence = []
    for bits in (Bits(8, 8), Bits(8, 6), Bits(6, 6), Bits(6, 4)):
        with planned(model, structure, plan, tensors, bits=bits):
            divergence.append(evaluate(model, windows, lead, reference=Reference(kept)).kl)
    assert divergence == sorted(divergence)
    assert divergence[-1] > 3 * divergence[0]
    assert evaluate(model, windows, lead).loss == before.loss


def test_which_smoothing_rotates_shifts_and_sweeps_the_vocabulary():
    words = ("auto", "auto:0.5", "rotate", "shift", "folds", "outliertune")
    wishes = [PlanOptions(smooth=word) for word in words]
    assert [wish.smoothing.rotate for wish in wishes] == ["down", "down", "all", "none", "none", "none"]
    assert [wish.smoothing.shift for wish in wishes] == ["down", "down", "all", "down", "none", "all"]
    assert [wish.sweeps_vocabulary for wish in wishes] == [True, True, True, True, False, False]
    assert wishes[1].smoothing.alpha == 0.5


@pytest.mark.parametrize("smooth", ["auto", "rotate"])
def test_planning_behind_a_rotation_measures_what_planned_computes(spiky_folder, sample_text_file, sample_text, smooth):
    checkpoint, model = load(spiky_folder)
    wishes = {"qfem": "off", "qfep": "off", "smooth": smooth, "scales": "absmax"}
    options = PlanOptions(calibration=(str(sample_text_file),), **SMALL, **wishes)
    plan, tensors = make_plan(checkpoint, model, options)
    fresh = load(spiky_folder)[1]
    rotated = {site.name: tensors[site.rotation] for site in plan.sites if site.rotation}
    assert rotated.keys() == ({site.name for site in plan.sites if smooth == "rotate" or "down" in site.name})
    # No value of the calibration text is clipped: scales were taken where inputs are quantised.
    reach = {}
    handles = [
        fresh.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, site=site: reach.__setitem__(
                site.name, float(InputTransform(*_parts(site, tensors))(args[0]).abs().max()) / site.scale
            )
        )
        for site in plan.sites
    ]
    apply_folds(fresh, plan.folds, tensors)
    windows = plan_windows(checkpoint, fresh, options).fit
    with torch.inference_mode():
        fresh(input_ids=torch.from_numpy(np.concatenate([np.full((len(windows), 1), 1), windows], 1)))
    for handle in handles:
        handle.remove()
    assert max(reach.values()) <= 128.6
    assert min(reach.values()) > 100


def _parts(site, tensors):
    return tuple(torch.from_numpy(tensors[name]) if name else None for name in (site.rotation, site.shift))


def test_an_excluded_input_is_neither_rotated_nor_folded_and_has_codes_of_its_own(spiky_folder, sample_text_file):
    wishes = {"exclude": ("model.layers.1.mlp.down_proj",), "qfem": "off", "rounding": "gptq"}
    (plan, tensors), _ = plan_of(spiky_folder, sample_text_file, **wishes)
    assert "model.layers.1.mlp.down_proj" not in {site.name for site in plan.sites}
    folded = {consumer for fold in plan.folds for consumer in fold.consumers}
    assert folded == set(plan.quantized_linears)
    fresh = load(spiky_folder)[1]
    apply_folds(fresh, plan.folds, tensors)

    def error(name):
        weight = fresh.get_submodule(name).weight.detach().numpy().T
        return np.abs(tensors[f"{name}.weight_q"] * tensors[f"{name}.weight_scale"] - weight)

    for layer, close in ((1, True), (0, False)):
        name = f"model.layers.{layer}.mlp.down_proj"
        assert (error(name).max() <= 0.51 * tensors[f"{name}.weight_scale"].max()) == close
        # What the fold took from the rows of up_proj is given back with it.
        up = f"model.layers.{layer}.mlp.up_proj"
        assert np.median(error(up) / tensors[f"{up}.weight_scale"]) < 0.4


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_the_trade_off_is_what_the_plan_does(spiky_folder, sample_text_file, rounding, monkeypatch):
    monkeypatch.setattr("spikeexport.calibration.exclusions.TARGET_KL", 0.0)
    wishes = {"qfep": "off", "smooth": "auto:0.95", "scales": "absmax", "max_excluded": 0.4, "rounding": rounding}
    checkpoint, model = load(spiky_folder)
    options = PlanOptions(calibration=(str(sample_text_file),), **SMALL, **wishes)
    held_out = plan_windows(checkpoint, model, options).held_out
    lead, kept = Lead(bos=1), []
    evaluate(model, held_out, lead, keep=kept)
    plan, tensors = make_plan(checkpoint, model, options)
    row = next(row for row in plan.trade_off if row.linears == len(plan.excluded))
    assert row.sites > 1
    assert row.kl < plan.trade_off[0].kl / 2
    fresh = load(spiky_folder)[1]
    with planned(fresh, discover(fresh), plan, tensors):
        found = evaluate(fresh, held_out, lead, reference=Reference(kept))
    assert found.kl == pytest.approx(row.kl, rel=0.02)
    assert found.perplexity == pytest.approx(row.perplexity, rel=1e-3)
