import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.foundation.errors import GraphError, PlanError
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.calibration.records.plan import Plan
from spikeexport.graphs.portable import build_portable, build_unquantised, decoder_linears, quantise
from spikeexport.graphs.saving import save_model

from tests.graphs.decoder_runs import call, open_session, reference_logits
from tests.graphs.test_parity_with_hugging_face import IDS
from tests.naive_plan import naive_plan

PREFIX = (7, 300, 1)
EXCLUDED = ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj")


@pytest.fixture(scope="module")
def planned(grouped):
    model = load_model(grouped)
    return naive_plan(grouped, model, prefix=PREFIX, exclude=EXCLUDED), prefix_arrays(model, PREFIX)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("lm_head", ["fp", "int8"])
def test_full_check_passes_with_shapes_inferred(grouped, planned, tmp_path, dtype, lm_head):
    plan, prefix = planned
    path = tmp_path / "model.onnx"
    save_model(build_portable(grouped, plan, {}, prefix, dtype, lm_head), path)
    onnx.checker.check_model(str(path), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    elements = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.output}
    expected = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    assert set(elements.values()) == {expected[dtype]}


def test_inputs_and_outputs_are_the_contract(grouped, planned, tmp_path):
    plan, prefix = planned
    save_model(build_portable(grouped, plan, {}, prefix, "fp16"), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    layers = range(3)
    past = [f"past_key_values.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask", "position_ids", *past]
    present = [f"present.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    assert [value.name for value in graph.output] == ["logits", *present]
    opsets = onnx.load(tmp_path / "model.onnx", load_external_data=False).opset_import
    assert [(opset.domain, opset.version) for opset in opsets] == [("", 23)]


def test_metadata_restore_the_plan(grouped, planned):
    plan, prefix = planned
    metadata = build_portable(grouped, plan, {}, prefix, "fp16").metadata_props
    assert Plan.from_dict(json.loads(metadata["spikeexport.plan"]), "metadata") == plan
    assert json.loads(metadata["spikeexport.prefix"])["ids"] == list(PREFIX)
    assert metadata["spikeexport.calibration_sha256"] == plan.calibration.sha256
    assert {"spikeexport", "mobius-onnx", "onnx-ir"} <= set(json.loads(metadata["spikeexport.versions"]))
    assert tuple(json.loads(metadata["spikeexport.linears"])) == decoder_linears(grouped)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_quantised_graph_stays_near_the_model(grouped, planned, tmp_path, dtype):
    plan, prefix = planned
    expected = reference_logits(load_model(grouped), IDS, PREFIX)
    found, _ = call(open_session(build_portable(grouped, plan, {}, prefix, dtype), tmp_path), IDS)
    noise = np.square(found.astype(np.float64) - expected).mean() / np.square(expected).mean()
    assert 1e-7 < noise < 5e-3


def test_narrow_graph_without_quantisation_is_near_the_model(grouped, tmp_path):
    plan = naive_plan(grouped, weights="fp")
    expected = reference_logits(load_model(grouped), IDS)
    found, _ = call(open_session(build_portable(grouped, plan, {}, (), "fp16"), tmp_path), IDS)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_quantising_twice_changes_nothing(grouped, planned):
    plan, prefix = planned
    model = build_portable(grouped, plan, {}, prefix, "fp16", "int8")
    before = [(node.name, node.op_type) for node in model.graph], sorted(model.graph.initializers)
    quantise(model, plan, "int8")
    assert ([(node.name, node.op_type) for node in model.graph], sorted(model.graph.initializers)) == before


def test_plain_plan_has_no_quantisation(grouped):
    graph = build_portable(grouped, naive_plan(grouped, weights="fp"), {}, (), "fp32").graph
    assert not {node.op_type for node in graph} & {"QuantizeLinear", "DequantizeLinear"}


def test_forgotten_linear_is_refused(grouped, planned):
    plan, prefix = planned
    without_one = plan.model_copy(update={"sites": plan.sites[:-1]})
    with pytest.raises(PlanError, match=r"nothing about 1 of 21 linears, first model\.layers\.2\.mlp\.down_proj"):
        build_portable(grouped, without_one, {}, prefix)


def test_prefix_of_another_depth_is_an_error_of_ours(grouped, planned):
    plan, prefix = planned
    with pytest.raises(GraphError, match="SplitAttention: The prefix has 2 layers, the graph 3"):
        build_unquantised(grouped, plan, {}, prefix[:2], "fp32")


def test_norm_of_a_narrow_graph_does_not_overflow(grouped, tmp_path):
    """|x| = 3000 squares to 9e6, beyond FP16: RMSNormalization computes in float32 whatever the type around it."""
    model = build_portable(grouped, naive_plan(grouped, weights="fp"), {}, (), "fp16")
    norms = [node for node in model.graph if node.op_type == "RMSNormalization"]
    assert len(norms) == 7
    assert {node.attributes.get_int("stash_type", 1) for node in norms} == {int(ir.DataType.FLOAT)}
    embedding = model.graph.initializers["model.embed_tokens.weight"]
    large = embedding.const_value.changed(lambda w: w * np.float32(3000 / np.abs(w).max()))
    embedding.const_value = large
    logits, _ = call(open_session(model, tmp_path), IDS)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.05
