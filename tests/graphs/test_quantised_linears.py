"""Each quantised linear against a quantiser written here, on the same input, to the last integer."""

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.passes.linears import named_matmuls
from spikeexport.graphs.portable import build_portable

from tests.graphs.decoder_runs import feeds, open_session
from tests.graphs.test_parity_with_hugging_face import IDS
from tests.naive_plan import naive_plan

PREFIX = (7, 300, 1)
EXCLUDED = ("model.layers.1.mlp.down_proj",)


def codes_of(values, scale, lowest):
    """Round half to even and saturate, in float32 as ONNX defines it."""
    return np.minimum(np.maximum(np.round(values / np.float32(scale)), lowest), 127).astype(np.int32)


def weight_codes(weight):
    """Per row of a Hugging Face weight [out, in]: absmax / 127 and the codes."""
    scales = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    return scales, codes_of(weight, scales[:, None], -127)


def exposed(model, plan):
    """Adds to the graph's outputs, per quantised linear: its float input, its codes, its result."""
    sources = {}
    for site in plan.sites:
        quantize = next(node for node in model.graph if node.name == f"{site.name}/input/QuantizeLinear")
        for linear in site.linears:
            result = named_matmuls(model.graph)[linear].outputs[0]
            sources[linear] = (site, quantize.inputs[0], quantize.outputs[0], result)
    outputs = dict.fromkeys(value for _, *values in sources.values() for value in values)
    model.graph.outputs.extend(outputs)
    return sources


@pytest.mark.parametrize("variant", ["grouped", "all biases", "odd sizes"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_codes_and_products_match_to_the_last_integer(llama_variant, tmp_path, variant, dtype):
    checkpoint = llama_variant(variant)
    torch_model = load_model(checkpoint)
    plan = naive_plan(checkpoint, torch_model, prefix=PREFIX, exclude=EXCLUDED)
    model = build_portable(checkpoint, plan, {}, prefix_arrays(torch_model, PREFIX), dtype)
    sources = exposed(model, plan)
    session = open_session(model, tmp_path)
    names = list(dict.fromkeys(value.name for _, *values in sources.values() for value in values))
    results = dict(zip(names, session.run(names, feeds(session, IDS)), strict=True))
    initializers = model.graph.initializers
    assert len(sources) == 20
    for linear, (site, source, quantised, result) in sources.items():
        weight = checkpoint.read_tensor(f"{linear}.weight").numpy()
        scales, expected_weight = weight_codes(weight)
        stored = initializers[f"{linear}.weight_q"].const_value.numpy()
        assert (expected_weight == stored.T).all(), linear
        assert (initializers[f"{linear}.weight_scale"].const_value.numpy() == scales).all(), linear
        expected_codes = codes_of(results[source.name].astype(np.float32), site.scale, -128)
        codes = results[quantised.name]
        assert codes.dtype == np.int8
        assert (codes == expected_codes).all(), linear
        assert len(np.unique(codes)) > 50, "hardly anything was quantised"
        products = codes.astype(np.int32) @ expected_weight.T
        if dtype == "fp32":
            steps = results[result.name].astype(np.float64) / (np.float64(np.float32(site.scale)) * scales)
            assert (np.rint(steps) == products).all(), linear
        else:
            expected = products * (np.float64(np.float32(site.scale)) * scales)
            error = np.abs(results[result.name] - expected).max()
            assert error <= 2e-2 * np.abs(expected).max(), linear


def test_wrong_scale_is_noticed(grouped):
    """The comparison above can fail: one step more in one channel changes codes."""
    weight = grouped.read_tensor("model.layers.0.mlp.up_proj.weight").numpy()
    scales, codes = weight_codes(weight)
    assert (codes_of(weight, (scales * np.float32(1.01))[:, None], -127) != codes).any()


def test_excluded_linear_reads_an_unquantised_input_and_int8_weights(grouped):
    plan = naive_plan(grouped, exclude=EXCLUDED)
    graph = build_portable(grouped, plan, {}, (), "fp32").graph
    node = named_matmuls(graph)[EXCLUDED[0]]
    assert node.inputs[0].producer().op_type == "Mul"
    assert node.inputs[1].producer().op_type == "DequantizeLinear"
    assert graph.initializers[f"{EXCLUDED[0]}.weight_q"].dtype == ir.DataType.INT8
