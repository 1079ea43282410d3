import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import CheckpointError

from tests.tiny_models import tiny_llama

IDS = torch.arange(3, 90).reshape(3, 29)


def _reference(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def _change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _mapped_ranges(file):
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            start, end = re.match(r"([0-9a-f]+)-([0-9a-f]+)", line).groups()
            yield range(int(start, 16), int(end, 16))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": True},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"attention_bias": True, "mlp_bias": True},
    ],
    ids=["plain", "tied", "llama3-rope", "yarn-rope", "biases"],
)
def test_logits_equal_transformers_exactly(tmp_path, overrides):
    folder = tiny_llama(tmp_path / "m", **overrides)
    with torch.inference_mode():
        ours, theirs = load_model(open_checkpoint(folder))(IDS).logits, _reference(folder)(IDS).logits
    assert torch.equal(ours, theirs)


def test_model_is_ready_for_inference(tiny_llama_folder):
    checkpoint = open_checkpoint(tiny_llama_folder)
    model = load_model(checkpoint)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    eager = load_model(checkpoint, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, eager(IDS).logits, rtol=1e-5, atol=1e-5)


def test_weights_lie_in_the_mapped_file(tiny_llama_folder):
    model = load_model(open_checkpoint(tiny_llama_folder))
    ranges = list(_mapped_ranges((tiny_llama_folder / "model.safetensors").resolve()))
    assert ranges
    for name, parameter in model.named_parameters():
        assert any(parameter.data_ptr() in mapped for mapped in ranges), f"{name} was copied"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_are_cast(tiny_llama_folder, dtype):
    model = load_model(open_checkpoint(tiny_llama_folder), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, _reference(tiny_llama_folder, dtype=dtype)(IDS).logits)


def test_half_precision_checkpoint_becomes_float32(folder):
    _change_weights(folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.read_tensor("lm_head.weight").dtype == torch.bfloat16
    model = load_model(checkpoint)
    assert model.lm_head.weight.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, checkpoint.read_tensor("lm_head.weight").float())


@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(folder, value, word, dtype):
    def damage(tensors):
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(dtype)
        tensors[name][77, 3] = value

    _change_weights(folder, damage)
    with pytest.raises(CheckpointError, match=rf"tensor model\.layers\.1\.mlp\.up_proj\.weight holds {word} values"):
        load_model(open_checkpoint(folder))


def test_shape_mismatch_names_tensor_found_and_expected(folder):
    _change_config(folder, intermediate_size=96)
    with pytest.raises(
        CheckpointError,
        match=r"tensor model\.layers\.0\.mlp\.down_proj\.weight has shape \[64, 128\], the configuration expects "
        r"\[64, 96\] \(and 8 more\)",
    ):
        load_model(open_checkpoint(folder))


def test_missing_tensor_is_named(folder):
    _change_weights(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(CheckpointError, match=r"checkpoint lacks model\.layers\.1\.self_attn\.k_proj\.weight;"):
        load_model(open_checkpoint(folder))


def test_leftover_tensors_are_named(folder):
    _change_config(folder, num_hidden_layers=2)
    with pytest.raises(
        CheckpointError, match=r"doesn't expect: model\.layers\.2\.input_layernorm\.weight \(and 8 more\)"
    ):
        load_model(open_checkpoint(folder))


def test_rotary_frequencies_of_old_checkpoints_are_no_leftovers(folder, tiny_llama_folder):
    def add(tensors):
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    _change_weights(folder, add)
    with torch.inference_mode():
        logits = load_model(open_checkpoint(folder))(IDS).logits
        assert torch.equal(logits, _reference(tiny_llama_folder)(IDS).logits)


@pytest.mark.slow
def test_real_model_stays_in_the_mapped_files(smollm2):
    before = _anonymous_bytes()
    model = load_model(smollm2)
    assert sum(p.numel() for p in model.parameters()) > 134e6
    assert _anonymous_bytes() - before < 120e6


def _anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) * 1024
