import onnx_ir as ir
from spikeexport.graphs.mobius_source import build_decoder
from spikeexport.graphs.passes.linears import MODULE_KEY, decoder_matmuls, named_matmuls
from spikeexport.graphs.passes.name_linears import NameLinears

from tests.graphs.decoder_runs import call, open_session
from tests.graphs.test_parity_with_hugging_face import IDS

LAYER = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LAYER += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def named(checkpoint, dtype=ir.DataType.FLOAT):
    model = build_decoder(checkpoint, dtype)
    assert NameLinears()(model).modified
    return model


def test_every_linear_carries_the_checkpoints_module_name(grouped):
    graph = named(grouped).graph
    expected = {f"model.layers.{layer}.{part}" for layer in range(3) for part in LAYER}
    assert set(decoder_matmuls(graph)) == expected
    assert set(named_matmuls(graph)) == expected | {"lm_head"}
    for module, node in named_matmuls(graph).items():
        assert node.name == f"{module}/MatMul"
        assert node.inputs[1].name == f"{module}.weight_t"
        assert node.metadata_props == {MODULE_KEY: module}


def test_weight_is_transposed_and_stays_lazy(grouped):
    weight = named(grouped).graph.initializers["model.layers.0.mlp.down_proj.weight_t"].const_value
    assert isinstance(weight, ir.LazyTensor)
    original = grouped.read_tensor("model.layers.0.mlp.down_proj.weight").numpy()
    assert (weight.numpy() == original.T).all()
    assert weight.shape.numpy() == original.T.shape


def test_tied_head_keeps_its_transpose_of_the_embedding(llama_variant):
    node = named_matmuls(named(llama_variant("multi-query tied")).graph)["lm_head"]
    transpose = node.inputs[1].producer()
    assert transpose.op_type == "Transpose"
    assert transpose.inputs[0].name == "model.embed_tokens.weight"


def test_all_names_are_unique_and_free_of_the_builders_metadata(llama_variant):
    graph = named(llama_variant("all biases")).graph
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    assert "model.layers.0.self_attn/Attention" in names
    assert "model.layers.2.input_layernorm/RMSNormalization" in names
    assert all(set(node.metadata_props) <= {MODULE_KEY} for node in graph)
    values = [value.name for node in graph for value in node.outputs]
    assert len(set(values)) == len(values)


def test_second_run_changes_nothing(grouped):
    model = named(grouped)
    before = ir.to_proto(model.graph).SerializeToString()
    assert not NameLinears()(model).modified
    assert ir.to_proto(model.graph).SerializeToString() == before


def test_function_is_unchanged(grouped, tmp_path):
    plain = build_decoder(grouped, ir.DataType.FLOAT)
    (expected, _), (found, _) = (
        call(open_session(model, tmp_path, name), IDS) for model, name in ((plain, "a"), (named(grouped), "b"))
    )
    assert abs(found - expected).max() <= 1e-5
