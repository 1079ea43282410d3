import json
import subprocess
import sys

import pytest
import torch
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.checkpoint.architectures import known_architectures
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.foundation.files import write_text

from tests.tiny_models import FAMILIES


def _edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    write_text(folder / "config.json", json.dumps({**config, **changes}))


def test_folder(tiny_llama_folder):
    checkpoint = open_checkpoint(str(tiny_llama_folder))
    assert checkpoint.name == checkpoint.model_id.name == "tiny-llama"
    assert (checkpoint.model_id.model_type, checkpoint.model_id.layers) == ("llama", 3)
    assert checkpoint.folder == tiny_llama_folder
    assert "model.layers.2.mlp.down_proj.weight" in checkpoint.tensor_names()
    assert checkpoint.read_tensor("model.layers.2.mlp.down_proj.weight").shape == (64, 128)
    assert checkpoint.tokenizer() is checkpoint.tokenizer()
    with pytest.raises(CheckpointError, match="no tensor nothing"):
        checkpoint.read_tensor("nothing")


def test_folder_named_by_a_dot(tiny_llama_folder, monkeypatch):
    monkeypatch.chdir(tiny_llama_folder)
    assert open_checkpoint(".").name == "tiny-llama"


def test_shards_equal_the_single_file(sharded, tiny_llama_folder):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    checkpoint, single = open_checkpoint(sharded), open_checkpoint(tiny_llama_folder)
    assert checkpoint.tensor_names() == single.tensor_names()
    assert all(torch.equal(checkpoint.read_tensor(n), single.read_tensor(n)) for n in single.tensor_names())
    assert checkpoint.model_id.fingerprint == single.model_id.fingerprint


def test_missing_shard_is_named(sharded):
    next(iter(sorted(sharded.glob("*00002-of*")))).unlink()
    with pytest.raises(CheckpointError, match=r"Shard .*model-00002-of-\d+\.safetensors is missing"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "/etc/outside.safetensors", "sub/x.safetensors", "x.bin", "..\\x.safetensors"]
)
def test_unsafe_shard_path_is_refused(sharded, path):
    (sharded.parent / "outside.safetensors").write_bytes(next(iter(sharded.glob("*.safetensors"))).read_bytes())
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["lm_head.weight"] = path
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"index\.json names the shard .* isn't safe"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_broken_index(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json .*(not valid JSON|has no weight_map)"):
        open_checkpoint(sharded)


def test_index_that_names_the_wrong_shard(sharded):
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    here = data["weight_map"]["lm_head.weight"]
    data["weight_map"]["lm_head.weight"] = next(name for name in data["weight_map"].values() if name != here)
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"lacks tensor lm_head\.weight"):
        open_checkpoint(sharded)


def test_missing_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist: expected a folder with safetensors"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"nowhere\.gguf does not exist"):
        open_checkpoint("nowhere.gguf")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_way_out(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    for path in (folder, folder / name):
        with pytest.raises(CheckpointError, match=r"pickled weights.*convert them once with .*save_pretrained"):
            open_checkpoint(path)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor .*found other\.safetensors"):
        open_checkpoint(folder)
    (folder / "other.safetensors").rename(folder / "model.gguf")
    with pytest.raises(CheckpointError, match=r"holds model\.gguf: give the path of the \.gguf file"):
        open_checkpoint(folder)


def test_files_that_are_no_model(folder):
    with pytest.raises(CheckpointError, match=r"one file of a checkpoint: give the folder"):
        open_checkpoint(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json is no model"):
        open_checkpoint(folder / "config.json")


def test_unknown_architecture_lists_the_known(folder):
    _edit_config(folder, model_type="quux")
    with pytest.raises(CheckpointError, match=r"unknown architecture \(model_type 'quux'\); known: .*llama.*mixtral"):
        open_checkpoint(folder)
    assert set(FAMILIES) <= set(known_architectures())
    assert not {"bert", "whisper"} & set(known_architectures())


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "holds a list"), ("", "not valid JSON"), ("{}", "unknown architecture")],
)
def test_unreadable_config(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_missing_or_senseless_config(folder):
    _edit_config(folder, num_attention_heads="many")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be understood"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_checkpoint(folder)


def test_quantised_checkpoint_is_refused(folder):
    _edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"already quantised \(gptq\)"):
        open_checkpoint(folder)


def test_remote_code_runs_only_when_asked_for(folder):
    (folder / "configuration_own.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(folder / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    _edit_config(folder, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    with pytest.raises(CheckpointError, match="unknown architecture"):
        open_checkpoint(folder)
    assert not (folder / "ran").exists()
    assert open_checkpoint(folder, trust_remote_code=True).model_id.model_type == "own"
    assert (folder / "ran").exists()


def test_folder_without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        open_checkpoint(folder).tokenizer()


def test_generation_settings(folder):
    settings = open_checkpoint(folder).generation_settings()
    assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (1, [2], 0)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 2], "temperature": 0.6, "do_sample": true}')
    settings = open_checkpoint(folder).generation_settings()
    assert settings["eos_token_id"] == [7, 2]
    assert settings["temperature"] == 0.6
    assert settings["pad_token_id"] == 0
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read"):
        open_checkpoint(folder).generation_settings()


def test_hub_id_without_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"^some-owner/some-model is no local folder .* hub failed .*give a local"
    ):
        open_checkpoint("some-owner/some-model")


def test_hub_fetches_no_pickles_and_no_code(monkeypatch, folder):
    import huggingface_hub

    asked = {}

    def snapshot_download(hub_id, *, allow_patterns, ignore_patterns):
        asked.update(id=hub_id, allow=allow_patterns, ignore=ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_checkpoint("owner/model").name == "owner/model"
    assert "*.py" not in asked["allow"]
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in asked["allow"])
    open_checkpoint("owner/model", trust_remote_code=True)
    assert "*.py" in asked["allow"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"owner/model has no safetensors on the hub"):
        open_checkpoint("owner/model")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, spikeexport.calibration.checkpoint, spikeexport.calibration.text; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
