import numpy as np
import pytest
import torch
from spikeexport.calibration.behind import measure_behind, measure_more
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.damage import kl_damage
from spikeexport.calibration.fakequant import FakeQuantizer
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.qfep.paper import _watched
from spikeexport.calibration.quality import Reference, evaluate
from spikeexport.calibration.rare_experts import MIN_TOKENS, rare_experts, with_layer_ranges
from spikeexport.calibration.site_statistics import Ranges, SiteStatistics
from spikeexport.calibration.smoothing.points import find_fold_points
from spikeexport.calibration.spikes import lower_median, spike_ratio
from spikeexport.calibration.structure.sites import discover
from transformers import AutoModelForCausalLM

from tests.tiny_models import tiny_family

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe"]
WINDOWS = np.random.default_rng(0).integers(3, 380, (3, 40))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return open_checkpoint(tiny_family("mixtral", tmp_path_factory.mktemp("mixtral") / "model"))


@pytest.fixture(scope="module")
def statistics(mixtral):
    model = load_model(mixtral)
    return observe_sites(model, discover(model), WINDOWS, Lead(), batch=2)


@pytest.mark.parametrize("family", MIXTURES)
def test_separate_experts_compute_what_the_fused_ones_did(family, tmp_path):
    folder = tiny_family(family, tmp_path / "model")
    ids = torch.from_numpy(WINDOWS)
    with torch.inference_mode():
        fused = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(load_model(open_checkpoint(folder))(ids).logits, fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_linears_have_the_names_of_the_checkpoint(family, tmp_path):
    checkpoint = open_checkpoint(tiny_family(family, tmp_path / "model"))
    structure = discover(load_model(checkpoint))
    names = {name.removesuffix(".weight") for name in checkpoint.tensor_names()}
    modules = {*structure.linears, *(router for router, _ in structure.routers)}
    assert modules <= names
    assert {name for name in names - modules if "norm" not in name and "bias" not in name} == {
        "model.embed_tokens",
        "lm_head",
    }


def test_each_expert_has_sites_of_its_own_fed_by_the_norm_of_the_block(mixtral):
    structure = discover(load_model(mixtral))
    first = [site for site in structure.in_layer(1) if site.expert]
    assert len(first) == 8
    block = "model.layers.1.block_sparse_moe"
    assert first[0].linears == (f"{block}.experts.0.w1", f"{block}.experts.0.w3")
    assert first[0].norm == "model.layers.1.post_attention_layernorm"
    assert first[1].linears == (f"{block}.experts.0.w2",)
    assert first[1].norm is None
    assert (f"{block}.gate", "model.layers.1.post_attention_layernorm") in structure.routers


def test_a_norms_scale_goes_into_all_experts_and_the_router(mixtral):
    model = load_model(mixtral)
    points = find_fold_points(model, discover(model))
    assert points.left_out == ()
    point = next(p for p in points.points if p.producer == "model.layers.2.post_attention_layernorm")
    assert len(point.consumers) == 9
    assert "model.layers.2.block_sparse_moe.gate" in point.consumers
    assert len(point.sites) == 4


def test_tokens_that_do_not_reach_an_expert_are_not_measured(mixtral, statistics):
    model, seen = load_model(mixtral), {}
    block = model.get_submodule("model.layers.0.block_sparse_moe")
    block.gate.register_forward_hook(lambda m, args, out: seen.update(x=args[0], chosen=out[2]))
    with torch.inference_mode():
        model(torch.from_numpy(WINDOWS))
    for expert in range(4):
        found = statistics[f"model.layers.0.block_sparse_moe.experts.{expert}.w1"]
        reached = (seen["chosen"] == expert).any(-1).reshape(WINDOWS.shape).numpy()
        expected = np.where(reached, seen["x"].abs().amax(-1).reshape(WINDOWS.shape).numpy(), np.nan)
        np.testing.assert_allclose(found.token_absmax, expected, rtol=1e-4)
        assert found.tokens_seen == reached.sum()
    dense = statistics["model.layers.0.self_attn.q_proj"]
    assert dense.tokens_seen == WINDOWS.size


def test_ratio_and_median_leave_out_tokens_that_were_not_seen():
    nan = np.nan
    absmax = np.array([[nan, 1, 4, nan, 2], [nan] * 5, [3, 3, 3, nan, 6]], np.float32)
    np.testing.assert_array_equal(lower_median(absmax), [2, nan, 3])
    assert spike_ratio(absmax) == pytest.approx((4 / 2 + 6 / 3) / 2)
    assert spike_ratio(absmax[1:2]) == 1.0


def test_rare_expert_takes_the_ranges_of_its_layer(mixtral, statistics):
    structure = discover(load_model(mixtral))
    block = "model.layers.0.block_sparse_moe.experts"

    def with_tokens(name, count, value):
        absmax = np.full((1, 200), np.nan, np.float32)
        absmax[0, :count] = value
        size = len(statistics[name].ranges.high)
        high = np.linspace(0.1, value, size, dtype=np.float32) if count else np.full(size, -np.inf, np.float32)
        return SiteStatistics(absmax, Ranges.symmetric(high))

    made = {site.name: with_tokens(site.name, 200, 1.0) for site in structure.sites}
    for name, value in (("w1", 2.0), ("w2", 5.0)):
        made[f"{block}.1.{name}"] = with_tokens(f"{block}.1.{name}", 200, value)
        made[f"{block}.2.{name}"] = with_tokens(f"{block}.2.{name}", MIN_TOKENS - 1, 0.5)
        made[f"{block}.3.{name}"] = with_tokens(f"{block}.3.{name}", 0, 0.0)
    assert rare_experts(structure, made) == {f"{block}.2": MIN_TOKENS - 1, f"{block}.3": 0}
    filled = with_layer_ranges(structure, made)
    for expert in ("2", "3"):
        np.testing.assert_array_equal(
            filled[f"{block}.{expert}.w1"].channel_absmax, made[f"{block}.1.w1"].channel_absmax
        )
        np.testing.assert_array_equal(filled[f"{block}.{expert}.w2"].channel_absmax, 5.0)
    assert filled[f"{block}.0.w1"] is made[f"{block}.0.w1"]


def test_an_expert_is_rare_by_all_windows_together(mixtral):
    model = load_model(mixtral)
    structure, lead = discover(model), Lead()
    half = len(WINDOWS) // 2
    first = observe_sites(model, structure, WINDOWS[:half], lead)
    behind = measure_behind(model, structure, WINDOWS[:half], WINDOWS[:1], lead, first)
    found = measure_more(model, structure, behind, WINDOWS[half:], None).statistics
    together = observe_sites(model, structure, WINDOWS, lead)
    seen = {name: (first[name].tokens_seen, site.tokens_seen) for name, site in together.items()}
    assert any(few < MIN_TOKENS <= all_windows for few, all_windows in seen.values())
    for name, site in with_layer_ranges(structure, together).items():
        np.testing.assert_allclose(found[name].channel_absmax, site.channel_absmax, rtol=1e-5, atol=1e-6)


def test_damage_of_an_expert_is_the_divergence_that_its_quantisation_causes(mixtral):
    model = load_model(mixtral)
    structure = discover(model)
    quantizer = FakeQuantizer(model, structure)
    for linear in structure.linears:
        quantizer.set_weight(linear, model.get_submodule(linear).weight.detach())
    site = next(s for s in structure.in_layer(0) if s.expert and s.role == "down")
    absmax = observe_sites(model, structure, WINDOWS, Lead())[site.name].channel_absmax.max()
    scales = {s.name: float(absmax) / 4 for s in structure.sites}
    damage = np.mean(
        [kl_damage(model, structure, quantizer, scales, WINDOWS, Lead(), seed=seed)[site.name] for seed in range(4)]
    )
    kept: list[torch.Tensor] = []
    with torch.inference_mode():
        evaluate(model, WINDOWS, Lead(), keep=kept)
        with quantizer.active({site.name: scales[site.name]}):
            measured = evaluate(model, WINDOWS, Lead(), reference=Reference([row.float() for row in kept])).kl
    assert damage == pytest.approx(measured, rel=0.5)


def test_prefix_rates_of_an_expert_come_from_the_hidden_states(mixtral):
    structure = discover(load_model(mixtral))
    assert _watched(structure, "model.layers.1.block_sparse_moe.experts.3.w2") == "model.layers.1"
    assert _watched(structure, "model.layers.1.self_attn.o_proj") == "model.layers.1.self_attn.o_proj"
