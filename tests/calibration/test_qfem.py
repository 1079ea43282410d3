import pytest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.qfem import knee, linears_of, sites_at_least, sites_matching, weight_shares
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load


def test_the_papers_rule_includes_alpha_itself():
    assert sites_at_least({"a": 3.0, "b": 20.0, "c": 21.0, "d": 19.9}, 20.0) == ("c", "b")


def test_knee_separates_spikes_from_the_rest():
    ratios = {f"s{i}": 3.0 + 0.01 * i for i in range(100)} | {"x": 2000.0, "y": 66.0, "z": 64.0}
    assert 8.0 <= knee(ratios) <= 66.0
    assert knee({f"s{i}": 3.0 + i / 100 for i in range(50)}) == float("inf")


def test_siblings_go_together_and_globs_match(tiny_llama_folder):
    _, model = load(tiny_llama_folder)
    structure = discover(model)
    sites = sites_matching(structure, ["*.1.self_attn.v_proj", "layers.0.mlp.down_proj"])
    assert linears_of(structure, sites) == (
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.self_attn.v_proj",
    )
    with pytest.raises(UsageError, match="matches none of the 21 decoder linears"):
        sites_matching(structure, ["*.experts.*"])
    assert sum(weight_shares(structure, model).values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wish", "pattern"),
    [({"qfem": "-1"}, "--qfem -1"), ({"qfem": "nan"}, "--qfem"), ({"qfem": "lots"}, "--qfem lots")],
)
def test_a_wrong_alpha_is_refused(wish, pattern):
    with pytest.raises(UsageError, match=pattern):
        _ = PlanOptions(**wish).alpha


@pytest.mark.parametrize("smooth", ["folds:2", "folds:x", "quarot"])
def test_a_wrong_smoothing_is_refused(smooth):
    with pytest.raises(UsageError, match="--smooth"):
        _ = PlanOptions(smooth=smooth).smoothing


def test_smoothing_takes_a_strength():
    method = PlanOptions(smooth="smoothquant:0.6").smoothing
    assert method is not None
    assert (method.name, method.alpha, method.kinds) == ("smoothquant", 0.6, frozenset({"norm"}))
