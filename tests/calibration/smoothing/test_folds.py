import numpy as np
import pytest
import torch
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.records.plan import Fold
from spikeexport.calibration.smoothing.apply import apply_folds, norm_offset, restore
from spikeexport.calibration.smoothing.points import find_fold_points
from spikeexport.calibration.smoothing.solve import Smoothing, solve_folds
from spikeexport.calibration.smoothing.strength import smoothing_scales
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load
from tests.tiny_models import tiny_family

ALL = frozenset({"norm", "up_down", "v_o"})
IDS = torch.arange(12)[None]


def random_folds(model, points, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{p.producer}.s": (0.2 + 4 * torch.rand(p.channels, generator=generator)).numpy() for p in points}
    folds = [Fold(kind=p.kind, producer=p.producer, consumers=p.consumers, scales=f"{p.producer}.s") for p in points]
    return folds, tensors


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "stablelm", "olmo2"]
)
def test_folds_leave_the_logits_unchanged(family, tmp_path):
    _, model = load(tiny_family(family, tmp_path / family))
    found = find_fold_points(model, discover(model))
    before = model(IDS).logits
    folds, tensors = random_folds(model, found.points)
    saved = apply_folds(model, folds, tensors)
    after = model(IDS).logits
    assert len(saved) > len(folds)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    restore(model, saved)
    assert torch.equal(model(IDS).logits, before)


def test_what_a_family_cannot_fold_is_said(tmp_path):
    _, model = load(tiny_family("olmo2", tmp_path / "olmo2"))
    found = find_fold_points(model, discover(model))
    assert {point.kind for point in found.points} == {"up_down", "v_o"}
    assert any(sentence.startswith("norm:") for sentence in found.left_out)


def test_a_forgotten_consumer_changes_the_logits(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    point = next(point for point in find_fold_points(model, discover(model)).points if point.kind == "norm")
    before = model(IDS).logits
    fold = Fold(kind="norm", producer=point.producer, consumers=point.consumers[:-1], scales="s")
    apply_folds(model, [fold], {"s": np.full(point.channels, 3.0, np.float32)})
    assert (model(IDS).logits - before).abs().max() > 1e-3


def test_grouped_query_heads_share_their_values_scale(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    point = next(point for point in find_fold_points(model, discover(model)).points if point.kind == "v_o")
    config = model.config
    assert point.repeats == config.num_attention_heads // config.num_key_value_heads > 1
    s = torch.arange(1.0, point.channels + 1)
    wide = point.expand(s).view(config.num_attention_heads, point.group)
    for head in range(config.num_attention_heads):
        start = (head // point.repeats) * point.group
        assert torch.equal(wide[head], s[start : start + point.group])
    assert torch.equal(point.reduce_max(point.expand(s)), s)


@pytest.mark.parametrize(
    ("family", "offset"), [("llama", 0.0), ("gemma", 1.0), ("gemma3_text", 1.0), ("stablelm", 0.0)]
)
def test_what_a_norm_adds_to_its_weight(family, offset, tmp_path):
    _, model = load(tiny_family(family, tmp_path / family))
    assert norm_offset(model.model.layers[0].input_layernorm) == offset


def test_smoothquants_rule():
    x, w = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0])
    s = smoothing_scales(x, w, 0.5, center=False)
    torch.testing.assert_close(s[:2], torch.tensor([2.0, 0.5]))
    assert s[2] >= 1e-5
    assert smoothing_scales(x, w, 0.8, center=True).log().mean().abs() < 1e-6


def test_power_of_two_folds_are_bit_exact(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    points = find_fold_points(model, structure)
    before = model(IDS).logits
    absmax = {site.name: torch.rand(site.channels) * 10 for site in structure.sites}
    solved = solve_folds(model, points, Smoothing("swiglu", frozenset({"up_down"}), 1.0, power_of_two=True), absmax)
    assert len(solved.folds) == model.config.num_hidden_layers
    assert torch.equal(model(IDS).logits, before)


def test_solved_folds_flatten_the_input(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    absmax = {site.name: 1 + 50 * torch.rand(site.channels) for site in structure.sites}
    solved = solve_folds(model, find_fold_points(model, structure), Smoothing("folds", ALL, 1.0), absmax)
    down = "model.layers.0.mlp.down_proj"
    behind = absmax[down] / solved.input_scales[down]
    assert behind.max() / behind.min() < 1.001


def test_a_vector_of_another_length_is_refused(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    path = "model.layers.0.mlp"
    fold = Fold(kind="up_down", producer=f"{path}.up_proj", consumers=(f"{path}.down_proj",), scales="s")
    with pytest.raises(PlanError, match="has 3 values"):
        apply_folds(model, [fold], {"s": np.ones(3, np.float32)})
