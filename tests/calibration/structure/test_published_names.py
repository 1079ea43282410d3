from collections.abc import Iterator

import pytest
from spikeexport.calibration.structure.published_names import map_published_names

DENSE = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)


def dense_linears(layers: int) -> list[str]:
    return [f"model.layers.{layer}.{part}" for layer in range(layers) for part in DENSE]


def mixtral_linears() -> Iterator[str]:
    for layer in range(32):
        yield from (f"model.layers.{layer}.{part}" for part in DENSE[:4])
        for expert in range(8):
            yield from (f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}" for part in ("w1", "w2", "w3"))


# The forms of names that the eight published lists hold, with the first and the last layer that each form appears in.
PUBLISHED = {
    "Llama-2-7b": (32, ["layers.1.mlp.down_proj", "layers.24.mlp.down_proj", "layers.31.mlp.up_proj"]),
    "Llama-2-7b o_proj": (32, ["layers.1.self_attn.o_proj"]),
    "Llama-2-13b": (40, ["layers.3.mlp.down_proj", "layers.39.mlp.down_proj", "layers.39.mlp.up_proj"]),
    "Llama-2-70b": (80, ["layers.8.mlp.down_proj", "layers.59.mlp.down_proj", "layers.79.mlp.up_proj"]),
    "Meta-Llama-3-70B": (80, ["layers.3.mlp.down_proj", "layers.3.mlp.up_proj"]),
    "Mistral-7B-v0.1": (32, ["layers.1.mlp.down_proj", "layers.0.mlp.down_proj"]),
    "SOLAR-10.7B": (48, ["layers.1.mlp.down_proj", "layers.40.mlp.down_proj"]),
    "gemma-7b": (28, ["layers.0.mlp.down_proj", "layers.13.mlp.down_proj"]),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_names_of_dense_models_get_the_model_prefix(model):
    layers, names = PUBLISHED[model]
    mapped = map_published_names(names, dense_linears(layers))
    assert mapped.linears == {name: f"model.{name}" for name in names}
    assert mapped.unknown == mapped.routers == ()


def test_mixtrals_experts_are_found_and_its_router_needs_no_exclusion():
    names = ["layers.1.block_sparse_moe.experts.3.w2", "layers.31.block_sparse_moe.experts.7.w1"]
    names += ["layers.2.self_attn.o_proj", "layers.0.block_sparse_moe.gate"]
    mapped = map_published_names(names, tuple(mixtral_linears()))
    assert mapped.linears == {name: f"model.{name}" for name in names[:3]}
    assert mapped.routers == ("layers.0.block_sparse_moe.gate",)
    assert mapped.unknown == ()


def test_other_spellings_of_the_same_linear():
    mixtral = tuple(mixtral_linears())
    assert map_published_names(["layers.1.mlp.experts.3.down_proj"], mixtral).linears == {
        "layers.1.mlp.experts.3.down_proj": "model.layers.1.block_sparse_moe.experts.3.w2"
    }
    fused = ["model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.down_proj"]
    mapped = map_published_names(["layers.0.mlp.up_proj", "layers.0.self_attn.q_proj"], fused)
    assert list(mapped.linears.values()) == fused[1::-1]


def test_a_name_that_the_model_lacks_is_told():
    mapped = map_published_names(["layers.32.mlp.down_proj", "layers.0.mlp.gate"], dense_linears(32))
    assert mapped.unknown == ("layers.32.mlp.down_proj", "layers.0.mlp.gate")
