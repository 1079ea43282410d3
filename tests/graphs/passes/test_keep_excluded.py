import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import Exclusion
from spikeexport.graphs.passes.keep_excluded import KeepExcluded
from spikeexport.graphs.passes.linears import named_matmuls

from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

DOWN = "model.layers.1.mlp.down_proj"


def excluded(precision):
    return KeepExcluded([Exclusion(linear=DOWN, precision=precision, why="test")])


def test_linear_of_the_graphs_own_type_is_left_alone(grouped):
    assert not excluded("fp16")(named(grouped, ir.DataType.FLOAT16)).modified
    assert not excluded("w8a16")(named(grouped, ir.DataType.FLOAT16)).modified


def test_linear_of_another_type_is_cast_on_both_sides(grouped, tmp_path):
    expected, _ = call(open_session(named(grouped), tmp_path, "a"), IDS)
    model = named(grouped)
    assert excluded("fp16")(model).modified
    node = named_matmuls(model.graph)[DOWN]
    assert {value.dtype for value in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT16}
    assert model.graph.initializers[f"{DOWN}.weight_t"].const_value.numpy().dtype == np.float16
    found, _ = call(open_session(model, tmp_path, "b"), IDS)
    assert 0 < np.abs(found - expected).max() < 0.05
    assert not excluded("fp16")(model).modified


def test_float32_linear_in_a_narrow_graph_keeps_its_exact_weight(grouped):
    model = named(grouped, ir.DataType.FLOAT16)
    excluded("fp32")(model)
    stored = model.graph.initializers[f"{DOWN}.weight_t"].const_value.numpy()
    assert (stored == grouped.read_tensor(f"{DOWN}.weight").numpy().T).all()


def test_what_cannot_be_written_is_refused(grouped):
    with pytest.raises(GraphError, match=rf"{DOWN}: an excluded linear in fp8 cannot be written yet"):
        excluded("fp8")(named(grouped))
    unknown = Exclusion(linear="model.layers.9.mlp.down_proj", precision="fp16", why="test")
    with pytest.raises(GraphError, match="which the graph does not have"):
        KeepExcluded([unknown])(named(grouped))
