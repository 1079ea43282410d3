import numpy as np
import pytest
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.passes.shift_positions import ShiftPositions

from tests.graphs.decoder_runs import feeds, open_session
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS


def test_shifted_graph_computes_what_shifted_positions_do(grouped, tmp_path):
    plain = open_session(named(grouped), tmp_path, "a")
    model = named(grouped)
    assert ShiftPositions(5)(model).modified
    shifted = open_session(model, tmp_path, "b")
    inputs = feeds(plain, IDS)
    (found,) = shifted.run(["present.1.key"], inputs)
    inputs["position_ids"] = inputs["position_ids"] + 5
    (expected,) = plain.run(["present.1.key"], inputs)
    assert np.abs(found - expected).max() <= 1e-6
    inputs["position_ids"] = inputs["position_ids"] - 4
    (unlike,) = plain.run(["present.1.key"], inputs)
    assert np.abs(found - unlike).max() > 0.01


def test_no_prefix_changes_nothing(grouped):
    assert not ShiftPositions(0)(named(grouped)).modified


def test_second_run_changes_nothing(grouped):
    model = named(grouped)
    ShiftPositions(5)(model)
    count = len(model.graph)
    assert not ShiftPositions(5)(model).modified
    assert len(model.graph) == count


def test_prefix_without_room_is_refused(grouped):
    with pytest.raises(GraphError, match="prefix of 1024 tokens leaves no room in the model's 1024 positions"):
        ShiftPositions(1024)(named(grouped))
