import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.passes.linears import named_matmuls
from spikeexport.graphs.passes.quantize_lm_head import QuantizeLmHead
from spikeexport.graphs.passes.quantize_weights import QuantizeWeights
from spikeexport.graphs.weights import LazyWeight

from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

DOWN = "model.layers.1.mlp.down_proj"


def test_weight_becomes_codes_and_scales_per_output_channel(grouped):
    model = named(grouped)
    assert QuantizeWeights([DOWN])(model).modified
    initializers = model.graph.initializers
    assert f"{DOWN}.weight_t" not in initializers
    codes, scales = (initializers[f"{DOWN}.weight_{kind}"].const_value for kind in ("q", "scale"))
    assert isinstance(codes, ir.LazyTensor)
    assert (codes.dtype, codes.shape.numpy()) == (ir.DataType.INT8, (128, 64))
    assert (scales.dtype, scales.shape.numpy()) == (ir.DataType.FLOAT, (64,))
    original = grouped.read_tensor(f"{DOWN}.weight").numpy().T
    assert np.abs(codes.numpy() * scales.numpy() - original).max() <= scales.numpy().max() * 0.501


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_dequantised_in_float32_then_cast_to_the_graphs_type(grouped, dtype):
    model = named(grouped, dtype)
    QuantizeWeights([DOWN])(model)
    value = named_matmuls(model.graph)[DOWN].inputs[1]
    assert value.dtype == dtype
    operators = [value.producer().op_type]
    if dtype != ir.DataType.FLOAT:
        operators.append(value.producer().inputs[0].producer().op_type)
    assert operators == (["DequantizeLinear"] if dtype == ir.DataType.FLOAT else ["Cast", "DequantizeLinear"])


def test_codes_do_not_depend_on_the_graphs_type(grouped):
    codes = []
    for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        model = named(grouped, dtype)
        QuantizeWeights([DOWN])(model)
        codes.append(model.graph.initializers[f"{DOWN}.weight_q"].const_value.numpy())
    assert (codes[0] == codes[1]).all()


def test_second_run_changes_nothing(grouped):
    model = named(grouped)
    QuantizeWeights([DOWN])(model)
    assert not QuantizeWeights([DOWN])(model).modified


def test_damaged_weight_is_named(grouped):
    model = named(grouped)
    value = model.graph.initializers[f"{DOWN}.weight_t"]
    value.const_value = LazyWeight(value.name, lambda: np.full((128, 64), np.nan, np.float32), (128, 64), value.dtype)
    with pytest.raises(GraphError, match=rf"{DOWN}: the weight holds NaN or infinity"):
        QuantizeWeights([DOWN])(model)


@pytest.mark.parametrize("variant", ["grouped", "multi-query tied"])
def test_head_in_int8_stays_close(llama_variant, tmp_path, variant):
    checkpoint = llama_variant(variant)
    expected, _ = call(open_session(named(checkpoint), tmp_path, "a"), IDS)
    model = named(checkpoint)
    assert QuantizeLmHead()(model).modified
    assert not QuantizeLmHead()(model).modified
    assert model.graph.initializers["lm_head.weight_q"].shape.numpy() == (64, 384)
    assert "model.embed_tokens.weight" in model.graph.initializers
    assert not any(node.op_type == "Transpose" for node in model.graph)
    found, _ = call(open_session(model, tmp_path, "b"), IDS)
    error = np.abs(found - expected).max()
    assert 0 < error < 0.02 * np.abs(expected).max()
