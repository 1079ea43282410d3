import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.foundation.errors import GraphError, PlanError
from spikeexport.calibration.records.plan import InputSite
from spikeexport.graphs.passes.insert_activation_qdq import InsertActivationQdq
from spikeexport.graphs.passes.linears import named_matmuls

from tests.graphs.passes.test_name_linears import named

ATTENTION = "model.layers.0.self_attn"
QKV = InputSite(name=f"{ATTENTION}.q_proj", linears=tuple(f"{ATTENTION}.{part}_proj" for part in "qkv"), scale=0.02)
DOWN = InputSite(name="model.layers.2.mlp.down_proj", linears=("model.layers.2.mlp.down_proj",), scale=0.5)


def quantised(checkpoint, *sites, dtype=ir.DataType.FLOAT):
    model = named(checkpoint, dtype)
    InsertActivationQdq(sites)(model)
    return model


def chain_of(node):
    operators = []
    value = node.inputs[0]
    while value.producer().op_type in ("Cast", "DequantizeLinear", "QuantizeLinear"):
        operators.append(value.producer().op_type)
        value = value.producer().inputs[0]
    return operators[::-1], value


def test_linears_of_a_site_share_one_pair(grouped):
    graph = quantised(grouped, QKV, DOWN).graph
    matmuls = named_matmuls(graph)
    assert len({matmuls[linear].inputs[0] for linear in QKV.linears}) == 1
    assert sum(node.op_type == "QuantizeLinear" for node in graph) == 2
    operators, source = chain_of(matmuls[QKV.name])
    assert operators == ["QuantizeLinear", "DequantizeLinear"]
    assert source.producer().op_type == "RMSNormalization"
    assert matmuls["model.layers.1.mlp.down_proj"].inputs[0].producer().op_type == "Mul"


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_pair_works_in_float32_inside_a_narrow_graph(grouped, dtype):
    graph = quantised(grouped, DOWN, dtype=dtype).graph
    node = named_matmuls(graph)[DOWN.name]
    operators, source = chain_of(node)
    assert operators == ["Cast", "QuantizeLinear", "DequantizeLinear", "Cast"]
    assert source.dtype == node.inputs[0].dtype == dtype


def test_scale_and_zero_point_are_typed_scalars_under_the_sites_name(grouped):
    initializers = quantised(grouped, DOWN).graph.initializers
    scale, zero = (initializers[f"{DOWN.name}.input_{kind}"].const_value for kind in ("scale", "zero_point"))
    assert (scale.dtype, tuple(scale.shape), scale.numpy()) == (ir.DataType.FLOAT, (), np.float32(0.5))
    assert (zero.dtype, tuple(zero.shape), zero.numpy()) == (ir.DataType.INT8, (), 0)


def test_names_tell_the_site(grouped):
    names = {node.name for node in quantised(grouped, QKV).graph}
    assert {f"{QKV.name}/input/QuantizeLinear", f"{QKV.name}/input/DequantizeLinear"} <= names


def test_second_run_changes_nothing(grouped):
    model = quantised(grouped, QKV)
    assert not InsertActivationQdq([QKV])(model).modified


def test_linears_that_read_different_tensors_cannot_share(grouped):
    site = InputSite(name=QKV.name, linears=(QKV.name, f"{ATTENTION}.o_proj"), scale=0.1)
    with pytest.raises(GraphError, match=r"o_proj reads .* but model\.layers\.0\.self_attn\.q_proj"):
        quantised(grouped, site)


def test_linear_of_another_model_is_refused(grouped):
    site = InputSite(name="model.layers.7.mlp.down_proj", linears=("model.layers.7.mlp.down_proj",), scale=0.1)
    with pytest.raises(GraphError, match=r"quantises model\.layers\.7\.mlp\.down_proj, which the graph does not have"):
        quantised(grouped, site)


def test_unusable_scale_is_refused_and_a_subnormal_one_warned_about(grouped, capsys):
    with pytest.raises(PlanError, match=r"model\.layers\.2\.mlp\.down_proj: the input scale 0\.0"):
        quantised(grouped, DOWN.model_copy(update={"scale": 0.0}))
    quantised(grouped, DOWN.model_copy(update={"scale": 1e-5}))
    assert "subnormal in FP16" in capsys.readouterr().err


def test_a_scale_that_is_subnormal_in_fp16_is_refused_in_an_fp16_graph(grouped):
    model = named(grouped, ir.DataType.FLOAT16)
    with pytest.raises(PlanError, match=r"down_proj: the input scale 1e-05 is subnormal in FP16 .* --dtype bf16"):
        InsertActivationQdq([DOWN.model_copy(update={"scale": 1e-5})])(model)
