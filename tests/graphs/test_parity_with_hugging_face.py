import numpy as np
import onnx
import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.portable import build_unquantised

from tests.graphs.conftest import VARIANTS
from tests.graphs.decoder_runs import largest_difference, open_session
from tests.naive_plan import naive_plan

TOLERANCE = 1e-3
IDS = np.random.default_rng(1).integers(3, 380, (1, 40))


@pytest.mark.parametrize("prefix", [(), (7, 300, 1)], ids=["plain", "prefix"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_unquantised_graph_is_hugging_face(llama_variant, tmp_path, variant, prefix):
    checkpoint = llama_variant(variant)
    model = load_model(checkpoint)
    plan = naive_plan(checkpoint, model, prefix=prefix, weights="fp")
    graph = build_unquantised(checkpoint, plan, {}, prefix_arrays(model, prefix), "fp32")
    session = open_session(graph, tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    for call, difference in largest_difference(session, model, IDS, prefix).items():
        assert difference <= TOLERANCE, call


def test_prefix_changes_the_logits(grouped, tmp_path):
    model = load_model(grouped)
    plan = naive_plan(grouped, model, prefix=(7, 300, 1), weights="fp")
    graph = build_unquantised(grouped, plan, {}, prefix_arrays(model, (7, 300, 1)), "fp32")
    without = largest_difference(open_session(graph, tmp_path), model, IDS)
    assert without["prefill"] > 0.1
