import json

import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import PlanError, UsageError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.records.plan import load_plan, save_plan
from spikeexport.decide import read_recipe
from spikeexport.export import export

from tests.calibration.models import load
from tests.tiny_models import tiny_llama

WISHES = {"samples": 4, "seqlen": 32, "qfem": "off", "qfep": "ids:5,1", "rounding": "gptq"}


@pytest.fixture(scope="module")
def recipe(tiny_llama_folder, sample_text_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("gptq") / "recipe.json"
    checkpoint, model = load(tiny_llama_folder)
    save_plan(*make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **WISHES)), path)
    return path


def damaged(recipe, tmp_path, change):
    data = json.loads(recipe.read_text())
    change(data)
    path = tmp_path / recipe.name
    path.write_text(json.dumps(data))
    path.with_suffix(".safetensors").write_bytes(recipe.with_suffix(".safetensors").read_bytes())
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["sites"][0].update(scale=0.0), "input scale 0.0"),
        (lambda data: data["sites"][0].update(scale=1e-60), "input scale 1e-60"),
        (lambda data: data["sites"][0].update(scale=1e60), "input scale 1e.60"),
        (lambda data: data["prefix"].update(ids=[5, 99999]), "token id 99999"),
        (lambda data: data["model"].update(fingerprint="0" * 16), "was made for"),
    ],
)
def test_a_damaged_recipe_is_refused_before_anything_is_written(tiny_llama_folder, recipe, tmp_path, change, message):
    path = damaged(recipe, tmp_path, change)
    with pytest.raises(PlanError, match=message):
        export(tiny_llama_folder, tmp_path / "out.onnx", recipe=path)
    assert not list(tmp_path.glob("out*"))


def test_a_recipe_for_another_model_is_refused(recipe, tmp_path):
    other = open_checkpoint(tiny_llama(tmp_path / "other", seed=1))
    with pytest.raises(PlanError, match="was made for"):
        read_recipe(other, recipe)


def test_missing_or_damaged_codes_are_refused(recipe, tmp_path):
    plan, tensors = load_plan(recipe)
    assert plan.rounding == "gptq"
    linear = plan.int8_weights[0]
    for name, value in ((f"{linear}.weight_q", tensors[f"{linear}.weight_q"][:, :3]), (f"{linear}.weight_scale", None)):
        changed = {**tensors, name: value}
        changed = {key: array for key, array in changed.items() if array is not None}
        path = tmp_path / "changed.json"
        save_plan(plan, changed, path)
        with pytest.raises(PlanError, match=linear.replace(".", r"\.")):
            load_plan(path)


def test_a_glob_that_matches_nothing_is_refused_before_anything_is_written(tiny_llama_folder, tmp_path):
    with pytest.raises(UsageError, match=r"'\*\.nothing' matches none"):
        export(tiny_llama_folder, tmp_path / "out.onnx", exclude=["*.nothing"], samples=4, seqlen=16)
    assert not list(tmp_path.glob("out*"))
