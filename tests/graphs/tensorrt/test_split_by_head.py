import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.portable import build_unquantised
from spikeexport.graphs.tensorrt.split_by_head import SplitByHead

from tests.family_cases import CASES
from tests.family_parity import IDS, PREFIX, open_case
from tests.graphs.decoder_runs import largest_difference, open_session
from tests.naive_plan import naive_plan


@pytest.mark.parametrize("label", CASES["phi3"])
def test_split_on_the_head_axis_computes_the_same(label, tmp_path):
    checkpoint = open_case("phi3", label, tmp_path / "m")
    model = load_model(checkpoint)
    plan = naive_plan(checkpoint, model, prefix=PREFIX, weights="fp")
    graph = build_unquantised(checkpoint, plan, {}, prefix_arrays(model, PREFIX), "fp32")
    assert SplitByHead()(graph).modified
    splits = [node for node in graph.graph if node.op_type == "Split" and "self_attn" in str(node.name)]
    assert [node.attributes["axis"].as_int() for node in splits] == [1, 1, 1]
    assert not SplitByHead()(graph).modified
    assert max(largest_difference(open_session(graph, tmp_path), model, IDS, PREFIX).values()) < 1e-3
