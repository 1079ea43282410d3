import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.passes.shift_positions import ShiftPositions
from spikeexport.graphs.passes.split_attention import SplitAttention

from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

PREFIX = (7, 300, 1)


def split(checkpoint, prefix=()):
    model = named(checkpoint)
    assert SplitAttention(prefix)(model).modified
    return model


@pytest.fixture(scope="module")
def prefix(grouped):
    return prefix_arrays(load_model(grouped), PREFIX)


def test_attention_has_one_output_and_no_past(grouped):
    attentions = [node for node in split(grouped).graph if node.op_type == "Attention"]
    assert len(attentions) == 3
    for node in attentions:
        assert len(node.outputs) == 1
        assert len(node.inputs) == 4
        assert node.attributes.get_int("is_causal", 0) == 0
    assert len({node.inputs[3] for node in attentions}) == 1, "the mask is built once"


def test_present_keeps_name_type_and_shape(grouped, prefix):
    for baked in ((), prefix):
        graph = split(grouped, baked).graph
        assert [value.name for value in graph.outputs[:3]] == ["logits", "present.0.key", "present.0.value"]
        for value in graph.outputs[1:]:
            assert value.producer().op_type == "Concat"
            assert len(value.producer().inputs) == 2, "the prefix is not part of present"
            assert value.dtype == ir.DataType.FLOAT
            assert str(value.shape[1]) == "2"


def test_prefix_is_an_initializer_in_front_of_the_past(grouped, prefix):
    graph = split(grouped, prefix).graph
    for layer in range(3):
        for kind in ("key", "value"):
            value = graph.initializers[f"prefix.{layer}.{kind}"]
            assert value.shape.numpy() == (1, 2, 3, 16)
            (expand,) = [node for node, _ in value.uses()]
            (concat,) = [node for node, _ in expand.outputs[0].uses()]
            assert concat.inputs[1].name == f"past_key_values.{layer}.{kind}"


def test_function_is_unchanged(grouped, tmp_path):
    before, after = (
        open_session(model, tmp_path, name) for model, name in ((named(grouped), "a"), (split(grouped), "b"))
    )
    expected, past = call(before, IDS[:, :30])
    found, split_past = call(after, IDS[:, :30])
    assert np.abs(found - expected).max() <= 1e-5
    expected, _ = call(before, IDS[:, 30:], past=past)
    found, _ = call(after, IDS[:, 30:], past=split_past)
    assert np.abs(found - expected).max() <= 1e-5
    assert all(np.abs(split_past[name] - past[name]).max() <= 1e-5 for name in past)


def test_cache_of_a_prefixed_graph_is_as_long_as_what_the_caller_gave(grouped, prefix, tmp_path):
    model = split(grouped, prefix)
    ShiftPositions(3)(model)
    _, past = call(open_session(model, tmp_path), IDS[:, :9])
    assert {array.shape for array in past.values()} == {(1, 2, 9, 16)}


def test_batch_rows_do_not_see_each_other(grouped, prefix, tmp_path):
    model = split(grouped, prefix)
    ShiftPositions(3)(model)
    session = open_session(model, tmp_path)
    rows = np.concatenate([IDS, IDS[:, ::-1]])
    together, _ = call(session, np.ascontiguousarray(rows))
    alone, _ = call(session, np.ascontiguousarray(rows[1:]))
    assert np.abs(together[1] - alone[0]).max() <= 1e-5


def test_second_run_changes_nothing(grouped, prefix):
    model = split(grouped, prefix)
    before = [node.name for node in model.graph]
    assert not SplitAttention(prefix)(model).modified
    assert [node.name for node in model.graph] == before


def test_prefix_of_another_depth_is_refused(grouped, prefix):
    with pytest.raises(ir.passes.PreconditionError, match="prefix has 2 layers, the graph 3"):
        SplitAttention(prefix[:2])(named(grouped))


def test_layers_of_one_window_share_a_mask(grouped):
    model = named(grouped)
    SplitAttention((), [8, None, 8])(model)
    masks = [node.inputs[3] for node in model.graph if node.op_type == "Attention"]
    assert masks[0] is masks[2]
    assert masks[0] is not masks[1]
    with pytest.raises(ir.passes.PreconditionError, match="list of windows has 2 layers, the graph 3"):
        SplitAttention((), [8, None])(named(grouped))
