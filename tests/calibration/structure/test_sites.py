import pytest
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.structure.sites import discover
from torch import nn
from transformers import AutoModelForCausalLM

from tests.calibration.models import load
from tests.tiny_models import tiny_family


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite"])
def test_siblings_share_an_input_and_norms_are_found(family, tmp_path):
    _, model = load(tiny_family(family, tmp_path / family))
    structure = discover(model)
    assert len(structure.layers) == model.config.num_hidden_layers
    first = structure.in_layer(0)
    assert [[path.rsplit(".", 1)[-1] for path in site.linears] for site in first] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert first[0].norm == "model.layers.0.input_layernorm"
    assert first[2].norm is not None
    assert first[1].norm is None
    assert first[3].norm is None


def test_norms_after_the_block_feed_no_linear(tmp_path):
    _, model = load(tiny_family("olmo2", tmp_path / "olmo2"))
    assert all(site.norm is None for site in discover(model).sites)


def test_a_model_without_layers_is_refused():
    with pytest.raises(CheckpointError, match="no list of decoder layers"):
        discover(nn.Linear(2, 2))


def test_fused_experts_are_refused_by_name(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_family("mixtral", tmp_path / "mixtral"))
    with pytest.raises(CheckpointError, match=r"experts"):
        discover(model)
