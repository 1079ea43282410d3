import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import CheckpointError, GraphError
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.calibration.records.plan import Fold
from spikeexport.graphs import families
from spikeexport.graphs.families.correction import Correction
from spikeexport.graphs.passes.linears import named_matmuls
from spikeexport.graphs.portable import build_unquantised
from spikeexport.parity import LIMIT, check_parity, parity_ids
from spikeexport.reference import load_reference, stored_dtype
from spikeexport.streamed_graph import StreamedGraph, cut_into_segments

from tests.naive_plan import naive_plan
from tests.tiny_models import BOS, tiny_llama

PREFIX = (7, 300, 1)
FOLD = Fold(
    kind="up_down", producer="model.layers.1.mlp.up_proj", consumers=("model.layers.1.mlp.down_proj",), scales="s"
)


@pytest.fixture(scope="module")
def checkpoint(tiny_llama_folder):
    return open_checkpoint(tiny_llama_folder)


@pytest.fixture(scope="module")
def reference(checkpoint):
    return load_reference(checkpoint)


def graph_of(checkpoint, reference, prefix=(), folds=(), tensors=None):
    plan = naive_plan(checkpoint, reference, prefix=prefix, weights="fp").model_copy(update={"folds": tuple(folds)})
    return build_unquantised(checkpoint, plan, tensors or {}, prefix_arrays(reference, prefix), "fp32")


@pytest.mark.parametrize("prefix", [(), PREFIX])
def test_right_graph_passes(checkpoint, reference, prefix):
    parity = check_parity(checkpoint, reference, graph_of(checkpoint, reference, prefix), prefix)
    assert 0 < parity.max_difference < 1e-4
    assert parity.limit == LIMIT
    assert parity.tokens > 100


def test_right_fold_passes_and_a_wrong_one_is_found_in_its_layer(checkpoint, reference):
    scales = np.random.default_rng(0).uniform(0.5, 2, 128).astype(np.float32)
    graph = graph_of(checkpoint, reference, folds=[FOLD], tensors={"s": scales})
    assert check_parity(checkpoint, reference, graph, ()).max_difference < 1e-4
    weight = graph.graph.initializers["model.layers.1.mlp.down_proj.weight_t"]
    weight.const_value = weight.const_value.changed(lambda w: w * np.float32(1.01))
    with pytest.raises(GraphError, match=r"differs from PyTorch: by .* in prefill .*beginning in decoder layer 1 "):
        check_parity(checkpoint, reference, graph, ())


def test_dropped_padding_mask_is_found(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    node = next(node for node in graph.graph if node.name == "attention_mask/visible")
    causal = node.inputs[1]
    for attention in [node for node in graph.graph if node.op_type == "Attention"]:
        attention.replace_input_with(3, causal)
    with pytest.raises(GraphError, match=r"in the left-padded row of a batch.*every decoder layer agrees"):
        check_parity(checkpoint, reference, graph, ())


def test_missing_mask_is_found(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    for attention in [node for node in graph.graph if node.op_type == "Attention"]:
        attention.replace_input_with(3, None)
    with pytest.raises(GraphError, match=r"in prefill.*beginning in decoder layer 0"):
        check_parity(checkpoint, reference, graph, ())


def test_swapped_key_and_value_are_found(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    attention = [node for node in graph.graph if node.op_type == "Attention"][2]
    key, value = attention.inputs[1:3]
    attention.replace_input_with(1, value)
    attention.replace_input_with(2, key)
    with pytest.raises(GraphError, match=r"in prefill.*beginning in decoder layer 2"):
        check_parity(checkpoint, reference, graph, ())


def test_swapped_cache_is_found_in_decoding_only(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    key, value = (next(v for v in graph.graph.outputs if v.name == f"present.1.{kind}") for kind in ("key", "value"))
    key.name, value.name = "present.1.value", "present.1.key"
    with pytest.raises(GraphError, match=r"in decoding token 1.*every decoder layer agrees in the prefill"):
        check_parity(checkpoint, reference, graph, ())


def test_prefix_at_the_wrong_position_is_found(checkpoint, reference):
    graph = graph_of(checkpoint, reference, PREFIX)
    graph.graph.initializers["position_ids.prefix_length"].const_value = ir.tensor(np.array([2], np.int64))
    with pytest.raises(GraphError, match="differs from PyTorch"):
        check_parity(checkpoint, reference, graph, PREFIX)


def test_wrong_prefix_is_found(checkpoint, reference):
    graph = graph_of(checkpoint, reference, PREFIX)
    with pytest.raises(GraphError, match="differs from PyTorch"):
        check_parity(checkpoint, reference, graph, (7, 301, 1))


def test_nan_is_a_difference(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    weight = graph.graph.initializers["model.norm.weight"]
    weight.const_value = weight.const_value.changed(lambda w: w * np.float32(np.nan))
    with pytest.raises(GraphError, match="by inf in prefill"):
        check_parity(checkpoint, reference, graph, ())


def test_part_that_onnx_runtime_refuses_is_named(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    named_matmuls(graph.graph)["lm_head"].op_type = "NoSuchOperator"
    with pytest.raises(GraphError, match=r"ONNX Runtime refuses the nodes from .* to lm_head/MatMul"):
        check_parity(checkpoint, reference, graph, ())


def test_a_family_that_the_builder_gets_wrong_is_stopped(checkpoint, reference, monkeypatch):
    def wrong(architecture, hf_config):
        return dataclasses.replace(architecture, rms_norm_eps=0.1)

    monkeypatch.setitem(families.CORRECTIONS, "llama", (Correction(config=wrong),))
    with pytest.raises(GraphError, match=r"beginning in decoder layer 0"):
        check_parity(checkpoint, reference, graph_of(checkpoint, reference), ())


def test_text_has_bos_only_without_a_prefix(checkpoint):
    assert parity_ids(checkpoint, ())[0] == BOS
    assert BOS not in parity_ids(checkpoint, PREFIX)


def test_tokenizer_of_another_model_is_refused(tmp_path):
    checkpoint = open_checkpoint(tiny_llama(tmp_path / "small", vocab_size=8))
    with pytest.raises(CheckpointError, match="tokenizer and model"):
        parity_ids(checkpoint, ())


def test_segments_cover_the_graph_and_hold_little(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    segments = cut_into_segments(graph.graph, 20_000)
    assert [node for segment in segments for node in segment.nodes] == list(graph.graph)
    largest = max(value.const_value.nbytes for value in graph.graph.initializers.values())
    assert all(sum(v.const_value.nbytes for v in segment.weights) <= max(20_000, largest) for segment in segments)
    assert {segment.layer for segment in cut_into_segments(graph.graph)} == {-1, 0, 1, 2}


def test_each_weight_is_computed_once(checkpoint, reference):
    graph = graph_of(checkpoint, reference)
    weight = graph.graph.initializers["model.layers.0.mlp.up_proj.weight_t"]
    reads = []
    weight.const_value = weight.const_value.changed(lambda w: reads.append(1) or w)
    check_parity(checkpoint, reference, graph, ())
    assert len(reads) == 1


def test_bf16_checkpoint_computes_in_float32_without_holding_it(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    load_model(open_checkpoint(folder), torch.bfloat16).save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    assert stored_dtype(checkpoint) == torch.bfloat16
    reference = load_reference(checkpoint)
    ids = torch.from_numpy(parity_ids(checkpoint, ()))[None]
    with torch.inference_mode():
        found, expected = reference(ids).logits, load_model(checkpoint, torch.float32)(ids).logits
    assert {parameter.dtype for parameter in reference.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    parity = check_parity(checkpoint, reference, graph_of(checkpoint, reference), ())
    assert parity.max_difference < 1e-4


def test_values_are_dropped_when_nothing_reads_them(checkpoint, reference):
    from spikeexport.parity import make_requests

    graph = graph_of(checkpoint, reference)
    requests = make_requests(graph, parity_ids(checkpoint, ()))
    for segment, known in StreamedGraph(graph).run(requests):
        if segment.layer == 2:
            assert not any(name.startswith("model.layers.0.") for name in known[0])
