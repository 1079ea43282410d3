import numpy as np
import pytest
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.scales import BINS, ScaleRule, clipping_point, clipping_points, scale_rule
from spikeexport.calibration.structure.sites import discover

from tests.calibration.models import load, text_windows


def histogram_of(values, absmax):
    return np.histogram(np.abs(values), BINS, (0.0, absmax))[0].astype(np.float64)


def squared_error(values, limit):
    step = limit / 127
    return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).sum())


def test_percentile_leaves_that_share_inside():
    values = np.random.default_rng(0).normal(size=100_000)
    absmax = float(np.abs(values).max())
    point = clipping_point(histogram_of(values, absmax), absmax, ScaleRule("percentile", 99.0))
    assert point == pytest.approx(np.percentile(np.abs(values), 99.0), rel=2e-3)
    assert clipping_point(histogram_of(values, absmax), absmax, ScaleRule("absmax")) == absmax


@pytest.mark.parametrize("outliers", [0, 3])
def test_mse_finds_the_least_squared_error(outliers):
    random = np.random.default_rng(1)
    values = np.concatenate([random.normal(size=200_000), np.full(outliers, 40.0)])
    absmax = float(np.abs(values).max())
    point = clipping_point(histogram_of(values, absmax), absmax, ScaleRule("mse"))
    best = min(squared_error(values, limit) for limit in absmax * np.linspace(0.02, 1, 200))
    assert squared_error(values, point) <= 1.1 * best
    assert outliers == 0 or point < 0.9 * absmax


@pytest.mark.parametrize("method", ["percentile:95", "mse"])
def test_several_sources_take_the_largest_that_any_asks_for(tiny_llama_folder, sample_text, method):
    checkpoint, model = load(tiny_llama_folder)
    structure, lead = discover(model), Lead(bos=1)
    quiet = np.repeat(text_windows(checkpoint, sample_text, 1, 16), 20, axis=0)
    loud = text_windows(checkpoint, sample_text[::-1], 1, 16)
    seen = observe_sites(model, structure, np.concatenate([quiet, loud]), lead)
    absmax = {name: float(site.channel_absmax.max()) for name, site in seen.items()}

    def points(*sources):
        return clipping_points(model, structure, sources, lead, absmax, scale_rule(method))

    apart, pooled = points(quiet, loud), points(np.concatenate([quiet, loud]))
    each = points(quiet), points(loud)
    assert apart == {name: max(each[0][name], each[1][name]) for name in absmax}
    assert any(apart[name] > 1.01 * pooled[name] for name in absmax)


@pytest.mark.parametrize("text", ["percentile:20", "percentile:x", "median", "mse:2"])
def test_a_wrong_rule_is_refused(text):
    with pytest.raises(UsageError, match="--scales"):
        scale_rule(text)


def test_the_wish_sets_the_scales(tiny_llama_folder, sample_text_file):
    wishes = {"samples": 4, "seqlen": 32, "qfem": "off", "qfep": "off", "rounding": "nearest"}

    def scales_with(**more):
        checkpoint, model = load(tiny_llama_folder)
        options = PlanOptions(calibration=(str(sample_text_file),), **wishes, **more)
        return np.array([site.scale for site in make_plan(checkpoint, model, options)[0].sites])

    absmax = scales_with(scales="absmax")
    clipped = scales_with(scales="percentile:90")
    assert (clipped < absmax).all()
    assert (scales_with(scales="mse") <= absmax * 1.0001).all()
    assert np.array_equal(scales_with(), absmax)
    assert (scales_with(smooth="off") <= scales_with(smooth="off", scales="absmax") * 1.0001).all()
