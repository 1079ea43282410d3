import json

import numpy as np
import pytest
from spikeexport.calibration.foundation.errors import PlanError, SpikeExportError
from spikeexport.calibration.records.model_id import ModelId
from spikeexport.calibration.records.plan import Fold, InputSite, Plan, load_plan, save_plan


@pytest.fixture
def plan():
    return Plan(
        model=ModelId(name="tiny", model_type="llama", layers=1, fingerprint="0123456789abcdef"),
        calibration=None,
        prefix=None,
        folds=(Fold(kind="up_down", producer="up", consumers=("down",), scales="up.smooth"),),
        sites=(InputSite(name="down", linears=("down",), scale=0.125),),
        excluded=(),
        alpha=None,
        weights="int8",
        decisions={"prefix": "off"},
    )


@pytest.fixture
def saved(plan, tmp_path):
    save_plan(plan, {"up.smooth": np.array([1.0, 0.1], np.float32)}, tmp_path / "recipe.json")
    return tmp_path / "recipe.json"


def test_a_plan_comes_back_to_the_bit(plan, saved):
    again, tensors = load_plan(saved)
    assert again == plan
    assert again.digest() == plan.digest()
    assert tensors["up.smooth"].tobytes() == np.array([1.0, 0.1], np.float32).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unheard_of": 1}, r"field unheard_of: Extra inputs"),
        ({"weights": "int3"}, r"field weights: .*found int3"),
        ({"sites": [{"name": "down", "linears": ["down"], "scale": "wide"}]}, r"field sites\.0\.scale"),
        ({"kind": "profile"}, r"is not a plan file \(kind: found 'profile'"),
        ({"schema_version": 99}, r"schema_version 99; this version reads 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(saved, change, message):
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **change}))
    with pytest.raises(PlanError, match=message):
        load_plan(saved)


@pytest.mark.parametrize("text", ["", "{", '{"kind": '])
def test_broken_json_names_the_line(saved, text):
    saved.write_text(text)
    with pytest.raises(SpikeExportError, match=r"is not valid JSON \(line 1"):
        load_plan(saved)


def test_missing_vectors_are_named(saved):
    saved.with_suffix(".safetensors").unlink()
    with pytest.raises(PlanError, match=r"recipe\.safetensors is missing"):
        load_plan(saved)


@pytest.mark.parametrize("vector", [[1.0, 0.0], [1.0, -2.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_scales_that_are_not_positive_and_finite_are_refused(plan, tmp_path, vector):
    save_plan(plan, {"up.smooth": np.array(vector, np.float32)}, tmp_path / "bad.json")
    with pytest.raises(PlanError, match="not finite and > 0"):
        load_plan(tmp_path / "bad.json")


def test_damaged_vectors_are_refused(saved):
    saved.with_suffix(".safetensors").write_bytes(b"\x08")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(saved)


def test_nothing_is_quantised_in_a_floating_point_plan(plan):
    assert plan.quantized_linears == ("down",)
    assert plan.model_copy(update={"weights": "fp"}).quantized_linears == ()
