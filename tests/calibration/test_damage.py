import pytest
import torch
from spikeexport.calibration.checkpoint import bos_id
from spikeexport.calibration.damage import local_damage
from spikeexport.calibration.exclusions import TARGET_KL, choose_exclusions, rank
from spikeexport.calibration.fakequant import FakeQuantizer
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.quality import Quality
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows


def test_damage_equals_its_definition_and_a_bad_scale_stands_out(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    structure, lead = discover(model), Lead(bos=bos_id(checkpoint))
    windows = text_windows(checkpoint, sample_text, 2, 24)
    statistics = observe_sites(model, structure, windows, lead)
    scales = {name: float(site.channel_absmax.max()) / 127 for name, site in statistics.items()}
    bad = "model.layers.1.self_attn.o_proj"
    scales[bad] *= 30
    quantizer = FakeQuantizer(model, structure)
    damage = local_damage(model, structure, quantizer, scales, windows, lead, batch=1)
    assert max((site for site in damage if site.endswith("o_proj")), key=damage.__getitem__) == bad
    assert damage[bad] == pytest.approx(_by_hand(model, quantizer, bad, 1, scales[bad], windows, lead), rel=1e-3)


def _by_hand(model, quantizer, name, layer, scale, windows, lead):
    inputs, hidden = [], []
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0])),
        model.model.layers[layer].register_forward_hook(
            lambda module, args, output: hidden.append(output[0] if isinstance(output, tuple) else output)
        ),
    ]
    ids = torch.cat([torch.full((len(windows), 1), lead.bos), torch.from_numpy(windows)], 1)
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    x = inputs[0]
    rounded = torch.clamp(torch.round(x / scale), -128, 127) * scale
    error = rounded @ quantizer.weight(name).T - x @ model.get_submodule(name).weight.T
    return float((error.pow(2).sum(-1) / hidden[0].pow(2).sum(-1)).mean())


def test_rank_fills_the_budget_by_damage_per_weight():
    damage = {"big": 1.0, "small": 0.5, "tiny": 0.01}
    shares = {"big": 0.04, "small": 0.01, "tiny": 0.001}
    assert rank(damage, shares, 0.05) == ("small", "big")
    assert rank(damage, shares, 0.02) == ("small", "tiny")
    assert rank(damage, shares, 0.0) == ()


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
