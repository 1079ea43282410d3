import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.checkpoint import load_model
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.calibration.records.plan import Fold
from spikeexport.calibration.smoothing.apply import apply_folds
from spikeexport.graphs.passes.fold_smoothing import FoldSmoothing
from spikeexport.graphs.passes.split_attention import SplitAttention
from spikeexport.graphs.weights import LazyWeight, set_weight

from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

LAYER = "model.layers.1"


def folds_of_layer(rng):
    attention, mlp = f"{LAYER}.self_attn", f"{LAYER}.mlp"
    qkv = tuple(f"{attention}.{part}_proj" for part in "qkv")
    folds = (
        Fold(kind="norm", producer=f"{LAYER}.input_layernorm", consumers=qkv, scales="a"),
        Fold(
            kind="norm",
            producer=f"{LAYER}.post_attention_layernorm",
            consumers=(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            scales="b",
        ),
        Fold(kind="up_down", producer=f"{mlp}.up_proj", consumers=(f"{mlp}.down_proj",), scales="c"),
        Fold(kind="v_o", producer=f"{attention}.v_proj", consumers=(f"{attention}.o_proj",), scales="d"),
    )
    sizes = {"a": 64, "b": 64, "c": 128, "d": 32}
    return folds, {key: rng.uniform(0.25, 4, size).astype(np.float32) for key, size in sizes.items()}


@pytest.fixture
def folds():
    return folds_of_layer(np.random.default_rng(3))


@pytest.mark.parametrize("variant", ["grouped", "all biases"])
def test_function_is_unchanged_and_every_weight_is(llama_variant, tmp_path, variant, folds):
    checkpoint = llama_variant(variant)
    expected, _ = call(open_session(named(checkpoint), tmp_path, "a"), IDS)
    model = named(checkpoint)
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    assert FoldSmoothing(*folds, head_dim=16)(model).modified
    found, _ = call(open_session(model, tmp_path, "b"), IDS)
    assert np.abs(found - expected).max() <= 1e-4
    changed = {
        name for name, value in model.graph.initializers.items() if (value.const_value.numpy() != before[name]).any()
    }
    parts = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    parts += [f"self_attn.{part}_proj.weight_t" for part in "qkvo"]
    parts += [f"mlp.{part}_proj.weight_t" for part in ("gate", "up", "down")]
    parts += ["self_attn.v_proj.bias", "mlp.up_proj.bias"] if variant == "all biases" else []
    assert changed == {f"{LAYER}.{part}" for part in parts}


def test_weights_are_those_of_the_folded_torch_model(grouped, folds):
    model = named(grouped)
    FoldSmoothing(*folds, head_dim=16)(model)
    torch_model = load_model(grouped)
    apply_folds(torch_model, *folds)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        found = model.graph.initializers[f"{LAYER}.{part}.weight_t"].const_value.numpy()
        expected = torch_model.get_submodule(f"{LAYER}.{part}").weight.numpy().T
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_prefix_cache_is_that_of_the_folded_torch_model(grouped, folds):
    torch_model = load_model(grouped)
    found = prefix_arrays(torch_model, (7, 300, 1), *folds)
    apply_folds(torch_model, *folds)
    for pair, expected in zip(found, prefix_arrays(torch_model, (7, 300, 1)), strict=True):
        for array, wanted in zip(pair, expected, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)


def test_norm_that_adds_one_to_its_weight_is_folded_behind_the_addition():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g")
    stored = np.array([0.5, -0.25], np.float32)
    weight = set_weight(graph, LazyWeight("norm.weight", lambda: stored, (2,), ir.DataType.FLOAT))
    one = ir.Value(name="one", const_value=ir.tensor(np.float32(1)))
    graph.register_initializer(one)
    graph.append(ir.node("Add", [weight, one]))
    model = ir.Model(graph, ir_version=10)
    fold = Fold(kind="norm", producer="norm", consumers=(), scales="s")
    scales = np.array([2.0, 4.0], np.float32)
    FoldSmoothing([fold], {"s": scales}, head_dim=1)(model)
    np.testing.assert_allclose(1 + graph.initializers["norm.weight"].const_value.numpy(), (1 + stored) / scales)


def test_second_run_changes_nothing(grouped, folds):
    model = named(grouped)
    step = FoldSmoothing(*folds, head_dim=16)
    step(model)
    name = f"{LAYER}.mlp.down_proj.weight_t"
    once = model.graph.initializers[name].const_value.numpy()
    assert not step(model).modified
    assert (model.graph.initializers[name].const_value.numpy() == once).all()


def test_nothing_is_computed_before_saving(grouped, folds):
    model = named(grouped)
    value = model.graph.initializers[f"{LAYER}.mlp.down_proj.weight_t"]

    def refuse():
        raise AssertionError("read during the pass")

    value.const_value = LazyWeight(value.name, refuse, (128, 64), ir.DataType.FLOAT)
    FoldSmoothing(*folds, head_dim=16)(model)
    with pytest.raises(AssertionError, match="read during the pass"):
        value.const_value.numpy()


def test_plan_for_another_model_is_refused(grouped):
    fold = Fold(kind="up_down", producer="model.layers.9.mlp.up_proj", consumers=(), scales="s")
    with pytest.raises(GraphError, match=r"model\.layers\.9\.mlp\.up_proj\.weight_t, which the graph does not have"):
        FoldSmoothing([fold], {"s": np.ones(4, np.float32)}, head_dim=16)(named(grouped))
    fold = Fold(kind="up_down", producer=f"{LAYER}.mlp.up_proj", consumers=(), scales="s")
    with pytest.raises(GraphError, match="the plan's fold has 4 channels"):
        FoldSmoothing([fold], {"s": np.ones(4, np.float32)}, head_dim=16)(named(grouped))


def test_folding_commutes_with_splitting_attention(grouped, folds, tmp_path):
    models = [named(grouped) for _ in range(2)]
    for step in (FoldSmoothing(*folds, head_dim=16), SplitAttention()):
        step(models[0])
    for step in (SplitAttention(), FoldSmoothing(*folds, head_dim=16)):
        step(models[1])
    (first, _), (second, _) = (call(open_session(m, tmp_path, str(i)), IDS) for i, m in enumerate(models))
    assert (first == second).all()
