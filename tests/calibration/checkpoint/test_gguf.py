import re
import struct

import numpy as np
import pytest
import torch
from spikeexport.calibration.checkpoint import bos_id, gguf_cache, load_model, open_checkpoint
from spikeexport.calibration.checkpoint.gguf_header import read_gguf_header
from spikeexport.calibration.foundation.errors import CheckpointError

from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_models import BOS, tiny_family, tiny_llama


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama_gguf(tiny_llama_folder, tmp_path_factory):
    return write_tiny_gguf(tiny_llama_folder, tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf")


def _transformers_model(file):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_weights_equal_transformers_bit_for_bit(quantization, tiny_llama_folder, tmp_path):
    file = write_tiny_gguf(tiny_llama_folder, tmp_path / "tiny.gguf", quantization=quantization)
    checkpoint = open_checkpoint(file)
    reference = _transformers_model(file).state_dict()
    assert checkpoint.tensor_names() == sorted(reference)
    for name, expected in reference.items():
        assert torch.equal(checkpoint.read_tensor(name), expected), name


def test_unquantised_gguf_gives_back_the_original(tiny_llama_folder, tmp_path):
    checkpoint = open_checkpoint(write_tiny_gguf(tiny_llama_folder, tmp_path / "tiny.gguf", quantization="F32"))
    original = open_checkpoint(tiny_llama_folder)
    for name in original.tensor_names():
        assert torch.equal(checkpoint.read_tensor(name), original.read_tensor(name)), name


def test_logits_settings_and_tokenizer(llama_gguf, sample_text):
    checkpoint = open_checkpoint(llama_gguf)
    ids = checkpoint.tokenizer()(sample_text[:300], return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        torch.testing.assert_close(
            load_model(checkpoint)(ids).logits, _transformers_model(llama_gguf)(ids).logits, rtol=0, atol=1e-6
        )
    assert checkpoint.name == checkpoint.model_id.name == "tiny.Q8_0.gguf"
    assert not hasattr(checkpoint.config, "quantization_config")
    assert checkpoint.generation_settings()["eos_token_id"] == [2]
    assert bos_id(checkpoint) == BOS
    assert checkpoint.tokenizer().decode(ids[0]) == sample_text[:300]


def test_converted_once_until_the_file_changes(llama_gguf, tiny_llama_folder, tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(llama_gguf.read_bytes())
    first = open_checkpoint(file)
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = open_checkpoint(file)
    assert again.folder == first.folder
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == written
    assert again.model_id == first.model_id
    write_tiny_gguf(tiny_llama_folder, file, quantization="Q4_1")
    changed = open_checkpoint(file)
    assert changed.folder != first.folder
    assert changed.model_id.fingerprint != first.model_id.fingerprint


def test_experts_that_transformers_merges(tmp_path):
    # The expert width is one that transformers doesn't read from GGUF: its default has to do.
    folder = tiny_family("qwen3_moe", tmp_path / "moe", moe_intermediate_size=768, norm_topk_prob=True)
    file = write_tiny_gguf(folder, tmp_path / "moe.gguf", quantization="F32")
    checkpoint, original = open_checkpoint(file), open_checkpoint(folder)
    assert checkpoint.tensor_names() == original.tensor_names()
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            load_model(checkpoint)(ids).logits, load_model(original)(ids).logits, rtol=0, atol=1e-6
        )


def test_experts_of_a_width_that_the_file_cannot_say(tmp_path):
    folder = tiny_family("qwen3_moe", tmp_path / "moe", moe_intermediate_size=32)
    with pytest.raises(CheckpointError, match=r"experts\.\S+ has shape \[4, \d+, \d+\], the configuration expects"):
        open_checkpoint(write_tiny_gguf(folder, tmp_path / "moe.gguf", quantization="F32"))


def test_a_missing_tensor_is_named(tiny_llama_folder, tmp_path, cache):
    file = write_tiny_gguf(tiny_llama_folder, tmp_path / "t.gguf", leave_out="blk.1.ffn_down.weight")
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.down_proj\.weight"):
        open_checkpoint(file)
    assert not any((cache / "gguf").iterdir())


def test_rotary_scaling_of_llama_3(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    folder = tiny_llama(tmp_path / "m", rope_parameters=scaling)
    plain = tiny_llama(tmp_path / "plain", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    scaled = load_model(open_checkpoint(folder)).model.rotary_emb.inv_freq
    factors = load_model(open_checkpoint(plain)).model.rotary_emb.inv_freq / scaled
    file = write_tiny_gguf(folder, tmp_path / "m.gguf", extra={"rope_freqs.weight": factors.numpy()})
    model = load_model(open_checkpoint(file))
    assert factors.max() == pytest.approx(8)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, scaled, rtol=1e-5, atol=0)


def test_rotary_factors_that_change_nothing(tiny_llama_folder, tmp_path):
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    checkpoint = open_checkpoint(write_tiny_gguf(tiny_llama_folder, tmp_path / "m.gguf", extra=ones))
    assert checkpoint.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.unheard_of.weight"])
def test_a_tensor_that_would_be_lost_is_refused(tiny_llama_folder, tmp_path, name):
    extra = {name: np.linspace(1, 3, 8, dtype=np.float32)}
    file = write_tiny_gguf(tiny_llama_folder, tmp_path / "m.gguf", extra=extra)
    with pytest.raises(CheckpointError, match=rf"tensor {name} \[8\] has no place in a llama model"):
        open_checkpoint(file)


def test_a_damaged_conversion_is_made_again(llama_gguf, capsys):
    checkpoint = open_checkpoint(llama_gguf)
    whole = (checkpoint.folder / "model.safetensors").read_bytes()
    (checkpoint.folder / "model.safetensors").write_bytes(bytes(len(whole)))
    again = open_checkpoint(llama_gguf)
    assert "made again" in capsys.readouterr().err
    assert (again.folder / "model.safetensors").read_bytes() == whole


def test_truncated_data_names_the_tensor_and_leaves_nothing(llama_gguf, tmp_path, cache):
    file = tmp_path / "cut.gguf"
    file.write_bytes(llama_gguf.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"cut\.gguf is truncated or corrupt: tensor \S+ ends at byte \d+"):
        open_checkpoint(file)
    assert not cache.exists()


@pytest.mark.parametrize("kept", [4, 20, 24, 100, 3000])
def test_truncated_header(llama_gguf, tmp_path, kept):
    file = tmp_path / "cut.gguf"
    file.write_bytes(llama_gguf.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.gguf is truncated or corrupt"):
        open_checkpoint(file)


def test_huge_lengths_are_refused_at_once(tmp_path):
    file = tmp_path / "huge.gguf"
    key = b"x"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 0, 2**60)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(CheckpointError, match="announces 1152921504606846976 more bytes than follow"):
        read_gguf_header(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a model at all", "no GGUF file"),
        (b"", "no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, expected one of 2, 3"),
    ],
)
def test_other_files(tmp_path, content, message):
    file = tmp_path / "other.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(file)


def test_nan_weights_are_named(llama_gguf, tmp_path):
    header = read_gguf_header(llama_gguf)
    norm = next(tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
    data = bytearray(llama_gguf.read_bytes())
    data[norm.start : norm.start + 4] = np.float32("nan").tobytes()
    file = tmp_path / "nan.gguf"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight holds NaN"):
        load_model(open_checkpoint(file))


def test_unknown_architecture(llama_gguf, tmp_path):
    file = tmp_path / "alien.gguf"
    file.write_bytes(llama_gguf.read_bytes().replace(b"llama", b"alien"))
    with pytest.raises(CheckpointError, match=r"alien\.gguf.*alien.*"):
        open_checkpoint(file)


def test_too_little_room(llama_gguf, monkeypatch):
    usage = gguf_cache.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(gguf_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=re.escape("0 MB are free: free some space or set SPIKEEXPORT_CACHE")):
        open_checkpoint(llama_gguf)


@pytest.mark.slow
def test_real_model_equals_transformers_bit_for_bit(smollm2_gguf, tmp_path):
    checkpoint = open_checkpoint(smollm2_gguf)
    reference = _transformers_model(smollm2_gguf).state_dict()
    assert sorted(reference.keys() - {"lm_head.weight"}) == checkpoint.tensor_names()
    for name in checkpoint.tensor_names():
        assert torch.equal(checkpoint.read_tensor(name), reference[name]), name
