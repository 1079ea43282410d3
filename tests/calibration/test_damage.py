import pytest
import torch
from spikeexport.calibration.checkpoint import bos_id
from spikeexport.calibration.damage import kl_damage
from spikeexport.calibration.exclusions import TARGET_KL, choose_exclusions, rank
from spikeexport.calibration.fakequant import FakeQuantizer
from spikeexport.calibration.forward import Lead, prefix_key_values
from spikeexport.calibration.input_transform import InputTransform
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.quality import Quality, Reference, evaluate
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows


@pytest.fixture
def quantised(tiny_llama_folder, sample_text):
    """A tiny model, its scales of 8 bits with two that are far too coarse, and windows."""
    checkpoint, model = load(tiny_llama_folder)
    structure, lead = discover(model), Lead(bos=bos_id(checkpoint))
    windows = text_windows(checkpoint, sample_text, 6, 48)
    statistics = observe_sites(model, structure, windows, lead)
    scales = {name: float(site.channel_absmax.max()) / 127 for name, site in statistics.items()}
    coarse = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj")
    scales |= {name: scales[name] * 12 for name in coarse}
    quantizer = FakeQuantizer(model, structure)
    for linear in structure.linears:
        quantizer.set_weight(linear, model.get_submodule(linear).weight.detach())
    return model, structure, quantizer, scales, windows, lead, coarse


def test_damage_predicts_the_measured_divergence(quantised):
    model, structure, quantizer, scales, windows, lead, coarse = quantised
    damage = kl_damage(model, structure, quantizer, scales, windows, lead)
    kept: list[torch.Tensor] = []
    evaluate(model, windows, lead, keep=kept)
    kept = [row.float() for row in kept]
    assert set(sorted(damage, key=lambda site: -damage[site])[:2]) == set(coarse)
    for site in coarse:
        with quantizer.active({site: scales[site]}):
            measured = evaluate(model, windows, lead, reference=Reference(kept)).kl
        assert damage[site] == pytest.approx(measured, rel=0.35), site


def test_damage_grows_with_the_square_of_the_step_and_repeats(quantised):
    model, structure, quantizer, scales, windows, lead, coarse = quantised
    once = kl_damage(model, structure, quantizer, scales, windows, lead)
    assert kl_damage(model, structure, quantizer, scales, windows, lead) == once
    halved = kl_damage(model, structure, quantizer, {k: v / 2 for k, v in scales.items()}, windows, lead)
    for site in coarse:
        assert once[site] / halved[site] == pytest.approx(4, rel=0.4)


def test_damage_behind_a_prefix_and_with_a_shift(quantised):
    model, structure, quantizer, scales, windows, _, coarse = quantised
    lead = Lead(prefix=(1, 5))
    cache = prefix_key_values(model, lead.prefix)
    plain = kl_damage(model, structure, quantizer, scales, windows, lead, key_values=cache)
    assert kl_damage(model, structure, quantizer, scales, windows, lead) == plain
    for steps, check in (
        (3, lambda d: d == pytest.approx(plain[coarse[0]], rel=1e-3)),
        (1000, _much_larger_than(plain)),
    ):
        shift = torch.full((model.config.intermediate_size,), steps * scales[coarse[0]])
        moved = FakeQuantizer(model, structure, transforms={coarse[0]: InputTransform(shift=shift)})
        for linear in structure.linears:
            moved.set_weight(linear, quantizer.weight(linear))
        assert check(kl_damage(model, structure, moved, scales, windows, lead)[coarse[0]])


def test_damage_counts_what_a_fold_does_to_the_weight(quantised):
    model, structure, exact, scales, windows, lead, coarse = quantised
    site = coarse[0]
    s = torch.ones(model.config.intermediate_size)
    s[3] = 30
    weight = model.get_submodule(site).weight
    weight.data = weight.data * s
    quantizer = FakeQuantizer(model, structure, own_folds={site: s})
    for linear in structure.linears:
        if linear != site:
            quantizer.set_weight(linear, exact.weight(linear))
    kept: list[torch.Tensor] = []
    evaluate(model, windows, lead, keep=kept)
    fine = {site: scales[site] / 12}
    damage = kl_damage(model, structure, quantizer, scales | fine, windows, lead)[site]
    measured = []
    for chosen in (fine, {}):
        with quantizer.active(chosen):
            measured.append(evaluate(model, windows, lead, reference=Reference([row.float() for row in kept])).kl)
    assert measured[0] > 20 * measured[1]
    assert damage == pytest.approx(measured[0] - measured[1], rel=0.35)


def _much_larger_than(plain):
    return lambda damage: damage > 100 * plain["model.layers.0.mlp.down_proj"]


def test_rank_fills_the_budget_by_damage_per_weight():
    damage = {"big": 1.0, "small": 0.5, "tiny": 0.01}
    shares = {"big": 0.04, "small": 0.01, "tiny": 0.001}
    assert rank(damage, shares, 0.05) == ("small", "big")
    assert rank(damage, shares, 0.02) == ("small", "tiny")
    assert rank(damage, shares, 0.0) == ()
    assert rank({**damage, "small": -0.5}, shares, 0.05) == ("big", "tiny")


def test_as_few_exclusions_as_meet_the_target(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    names = [site.name for site in structure.sites]
    damage = {name: 1.0 / (index + 1) for index, name in enumerate(names)}
    shares = dict.fromkeys(names, 1 / len(names))

    def choose(kl_of):
        return choose_exclusions(
            structure, damage, shares, 0.5, (), lambda sites: Quality(loss=2.0, kl=kl_of(len(sites)), tokens=10)
        )

    assert choose(lambda count: TARGET_KL / 2).sites == ()
    assert choose(lambda count: 1.0 if count < 2 else TARGET_KL / 2).sites == tuple(names[:2])
    assert choose(lambda count: 1.0).sites == ()
    falling = choose(lambda count: 1.0 / (1 + count))
    assert len(falling.sites) == len(names) // 2
    assert [row.sites for row in falling.trade_off] == sorted(row.sites for row in falling.trade_off)
