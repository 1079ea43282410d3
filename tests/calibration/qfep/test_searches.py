from itertools import permutations

import numpy as np
import pytest
import torch
from spikeexport.calibration.checkpoint import bos_id
from spikeexport.calibration.forward import Lead, prefix_key_values, run_windows, windows_with_lead
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.qfep.candidate import PrefixCandidate
from spikeexport.calibration.qfep.choose import LOG_RATIOS_TOLERANCE, MOST_REORDERED, reordered, search_prefix
from spikeexport.calibration.qfep.given import given_prefix
from spikeexport.calibration.qfep.paper import paper_prefix, top_tokens
from spikeexport.calibration.qfep.prefixquant import prefixquant_prefix
from spikeexport.calibration.qfep.residual import residual_prefix, spiking_ids
from spikeexport.calibration.quality import first_token_loss
from spikeexport.calibration.site_statistics import Ranges, SiteStatistics
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows
from tests.tiny_models import plant_spike, token_id


@pytest.fixture(scope="module")
def spiky(tmp_path_factory, sample_text):
    token = token_id("e")
    checkpoint, model = load(plant_spike(tmp_path_factory.mktemp("spiky"), token, layer=1, ratio=500.0))
    windows = text_windows(checkpoint, sample_text, 4, 48)
    windows[windows == token] = token_id("a")
    windows[:, 11] = token
    return checkpoint, model, windows, token


def watch(spiky):
    checkpoint, model, windows, _ = spiky
    structure, bos = discover(model), bos_id(checkpoint)
    ids = windows_with_lead(windows, Lead(bos=bos))
    return structure, observe_sites(model, structure, windows, Lead(bos=bos)), ids, bos


def test_a_prefix_cache_equals_the_prefix_in_the_sequence(spiky):
    _, model, windows, token = spiky
    prefix = (5, token, 1)
    behind = torch.cat([logits for _, logits in run_windows(model, windows, Lead(prefix=prefix), batch=3)])
    whole = np.concatenate([np.tile(prefix, (len(windows), 1)), windows], axis=1)
    wanted = model(input_ids=torch.from_numpy(whole)).logits[:, len(prefix) :]
    torch.testing.assert_close(behind, wanted, rtol=1e-4, atol=1e-4)
    key, value = prefix_key_values(model, prefix)[0]
    assert key.shape == value.shape == (1, model.config.num_key_value_heads, 3, model.config.head_dim)


def test_the_papers_search_starts_from_the_planted_token(spiky):
    _, model, _, token = spiky
    structure, statistics, ids, bos = watch(spiky)
    assert top_tokens(statistics["model.layers.1.mlp.down_proj"].token_absmax[:, 1:], ids[:, 1:])[0] == token
    found = paper_prefix(model, structure, statistics, ids, bos)
    assert found is not None
    assert found.ids[0] == bos
    assert len(found.ids) == 3
    assert found.method == "paper"


def test_prefixquant_puts_the_frequent_outlier_before_bos(spiky):
    _, _, _, token = spiky
    structure, statistics, ids, bos = watch(spiky)
    found = prefixquant_prefix(structure, statistics, ids, bos)
    assert found is not None
    assert found.ids == (token, bos)


def test_prefixquant_leaves_bos_alone_for_a_rare_single_outlier(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    ids = np.tile(np.arange(8), (30, 1))
    quiet = np.ones((30, 8), np.float32)
    statistics = {site.name: SiteStatistics(quiet, Ranges.symmetric(np.ones(1))) for site in structure.sites}
    assert prefixquant_prefix(structure, statistics, ids, 0).ids == (0,)
    loud = quiet.copy()
    loud[3, 4] = 1000.0
    statistics["model.layers.1.mlp.down_proj"] = SiteStatistics(loud, Ranges.symmetric(np.ones(1)))
    assert prefixquant_prefix(structure, statistics, ids, 0).ids == (0,)
    loud[:15, 4] = 1000.0
    assert prefixquant_prefix(structure, statistics, ids, 0).ids == (4, 0)


def test_residual_search_returns_a_prefix_ending_in_bos(spiky):
    _, model, windows, token = spiky
    structure, statistics, ids, bos = watch(spiky)
    assert spiking_ids(statistics, ids, 1) == [token]
    found = residual_prefix(model, structure, windows, bos)
    assert found is not None
    assert found.ids[-1] == bos
    assert len(found.ids) <= 3


def test_a_prefix_that_raises_the_loss_is_not_admissible(spiky):
    _, model, windows, _ = spiky
    structure, statistics, _, bos = watch(spiky)
    never = search_prefix(model, structure, windows, windows[:2], windows[:1], statistics, bos, bos_loss=-1.0)
    always = search_prefix(model, structure, windows, windows[:2], windows[:1], statistics, bos, bos_loss=1e9)
    assert never.best is None
    assert always.best is not None
    least = min(item.residue.log_ratios for item in always.measured)
    equal = [item for item in always.measured if item.residue.log_ratios <= least + LOG_RATIOS_TOLERANCE * abs(least)]
    assert always.best.loss == min(item.loss for item in equal)


def test_the_order_of_a_prefix_is_the_one_that_predicts_a_first_token_best(spiky):
    _, model, windows, token = spiky
    ids = (token, 5, bos_id(spiky[0]))
    losses = {order: first_token_loss(model, windows, Lead(prefix=order)) for order in permutations(ids)}
    best = min(losses, key=losses.__getitem__)
    assert max(losses.values()) > losses[best]
    assert reordered(model, PrefixCandidate(ids, "residual"), windows) == PrefixCandidate(best, "residual reordered")
    logits = model(input_ids=torch.tensor([list(best)])).logits[0, -1]
    by_hand = torch.nn.functional.cross_entropy(logits.expand(windows.size, -1), torch.from_numpy(windows.ravel()))
    assert losses[best] == pytest.approx(float(by_hand), rel=1e-5)


def test_no_prefix_is_measured_twice_and_a_long_one_keeps_its_order(spiky):
    _, model, windows, _ = spiky
    structure, statistics, _, bos = watch(spiky)
    found = search_prefix(model, structure, windows, windows[:2], windows[:1], statistics, bos, bos_loss=1e9)
    ids = [item.candidate.ids for item in found.measured]
    assert len(set(ids)) == len(ids)
    long = PrefixCandidate(tuple(range(3, 4 + MOST_REORDERED)), "prefixquant")
    assert reordered(model, long, windows) is long


def test_the_loss_of_a_candidate_counts_first_tokens(spiky):
    _, model, windows, _ = spiky
    structure, statistics, _, bos = watch(spiky)
    found = search_prefix(model, structure, windows, windows[:2], windows, statistics, bos, bos_loss=1e9)
    for item in found.measured:
        lead = item.candidate.ids
        whole = np.concatenate([np.tile(lead, (len(windows), 1)), windows], axis=1)
        logits = model(input_ids=torch.from_numpy(whole)).logits[:, len(lead) : -1].flatten(0, 1)
        rest = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(windows[:, 1:].ravel())))
        first = first_token_loss(model, windows, Lead(prefix=lead))
        length = windows.shape[1]
        assert item.loss == pytest.approx((first + (length - 1) * rest) / length, rel=1e-4)


def test_nothing_predicts_a_first_token_without_a_lead(spiky):
    _, model, windows, _ = spiky
    assert first_token_loss(model, windows, Lead()) == 0.0


def test_a_given_prefix_is_taken_word_for_word(spiky):
    checkpoint = spiky[0]
    assert given_prefix(checkpoint, "auto") is None
    assert given_prefix(checkpoint, "ids:5,6,1").ids == (5, 6, 1)
    text = given_prefix(checkpoint, "the end")
    assert text.text == "the end"
    with pytest.raises(UsageError, match="999999 is no id"):
        given_prefix(checkpoint, "ids:999999")
    with pytest.raises(UsageError, match="expected numbers"):
        given_prefix(checkpoint, "ids:a")
