"""--fail-above: reading, refusing, judging."""

import pytest
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.compare.thresholds import METRICS, failures, parse_thresholds, require_measured

DATA = {
    "perplexity": {"ratio": 1.05, "candidate": 25.0},
    "kl_divergence": 0.04,
    "top1_agreement": 0.9,
    "top5_agreement": 0.8,
    "logits": {"max_abs": 3.0, "snr_db": 20.0},
    "behind_prefix": {"kl_divergence": 0.03},
    "noise": {"kl_divergence": 0.02},
    "layers": [{"snr_db": 30.0}, {"snr_db": 10.0}],
    "worst_windows": [{"kl": 0.09}, {"kl": 0.05}],
}


def test_every_metric_is_read_from_the_json():
    values = {name: read(DATA) for name, read in METRICS.items()}
    assert values == {
        "perplexity_ratio": 1.05,
        "perplexity": 25.0,
        "kl": 0.04,
        "kl_divergence": 0.04,
        "kl_worst_window": 0.09,
        "top1_disagreement": pytest.approx(0.1),
        "top5_disagreement": pytest.approx(0.2),
        "logits_max_abs": 3.0,
        "logits_error": pytest.approx(0.01),
        "kl_behind_prefix": 0.03,
        "kl_over_noise": pytest.approx(2.0),
        "worst_linear": pytest.approx(0.1),
    }


def test_what_is_not_measured_is_refused():
    with pytest.raises(UsageError, match="add --noise"):
        require_measured({"kl_over_noise": 1.0}, noise=False, layers=True)
    with pytest.raises(UsageError, match="leave --no-layers out"):
        require_measured({"worst_linear": 1.0}, noise=True, layers=False)
    with pytest.raises(UsageError, match="layer by layer"):
        failures({**DATA, "layers": []}, {"worst_linear": 1.0})
    assert METRICS["kl_behind_prefix"]({**DATA, "behind_prefix": None}) == 0.04


def test_only_what_lies_above_fails():
    assert failures(DATA, parse_thresholds(["kl=0.04", "perplexity_ratio=1.02"])) == (
        "perplexity_ratio is 1.05, above 1.02",
    )
    assert failures(DATA, {}) == ()


@pytest.mark.parametrize("pair", ["kl", "kl=", "kl=abc", "kl=nan", "=1"])
def test_malformed_pairs_are_refused(pair):
    with pytest.raises(UsageError, match="--fail-above"):
        parse_thresholds([pair])


def test_unknown_metrics_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'cosine'.*perplexity_ratio.*logits_max_abs"):
        parse_thresholds(["cosine=0.9"])
