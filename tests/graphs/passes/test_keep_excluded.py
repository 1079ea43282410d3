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
    with pytest.raises(GraphError, match=rf"{DOWN}: the plan has no FP8 scale"):
        excluded("fp8")(named(grouped))
    unknown = Exclusion(linear="model.layers.9.mlp.down_proj", precision="fp16", why="test")
    with pytest.raises(GraphError, match="which the graph does not have"):
        KeepExcluded([unknown])(named(grouped))


def test_float8_rounds_input_and_weight_to_e4m3(grouped, tmp_path):
    expected, _ = call(open_session(named(grouped), tmp_path, "a"), IDS)
    model = named(grouped)
    step = KeepExcluded([Exclusion(linear=DOWN, precision="fp8", why="test", scale=0.02)])
    assert step(model).modified
    assert not step(model).modified
    initializers = model.graph.initializers
    codes = initializers[f"{DOWN}.weight_f8"].const_value.numpy().astype(np.float32)
    wanted = grouped.read_tensor(f"{DOWN}.weight").numpy().T
    found = codes * initializers[f"{DOWN}.weight_scale"].const_value.numpy()
    # Three bits of mantissa: half a step is a sixteenth of the value; below that lie the subnormal steps.
    assert (np.abs(found - wanted) <= np.abs(wanted) / 16 + np.abs(wanted).max() / 448 / 2**9).all()
    assert np.abs(codes).max() == 448
    quantize = next(node for node in model.graph if node.name == f"{DOWN}/input/QuantizeLinear")
    assert quantize.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
    logits, _ = call(open_session(model, tmp_path, "b"), IDS)
    assert 0 < np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
