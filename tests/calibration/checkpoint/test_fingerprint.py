import json

import torch
from safetensors.torch import load_file, save_file
from spikeexport.calibration.checkpoint import open_checkpoint


def _fingerprint(folder):
    return open_checkpoint(folder).model_id.fingerprint


def _resave(folder, change=lambda tensors: None):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_same_content_same_fingerprint(folder, tiny_llama_folder):
    first = _fingerprint(tiny_llama_folder)
    assert len(first) == 16
    assert int(first, 16) >= 0
    _resave(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "5.0.0", "use_cache": False}))
    assert _fingerprint(folder) == first


def test_one_value_at_either_end_or_in_the_middle(folder, tiny_llama_folder):
    seen = {_fingerprint(tiny_llama_folder)}
    for place in (0, -1, 384 * 64 // 2):

        def change(tensors, place=place):
            tensors["lm_head.weight"].view(-1)[place] += 1

        _resave(folder, change)
        seen.add(_fingerprint(folder))
    assert len(seen) == 4


def test_name_dtype_and_configuration_count(folder):
    seen = {_fingerprint(folder)}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    seen.add(_fingerprint(folder))
    _resave(folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].bfloat16()}))
    seen.add(_fingerprint(folder))
    _resave(folder, lambda tensors: tensors.update({"extra": torch.zeros(0)}))
    seen.add(_fingerprint(folder))
    assert len(seen) == 4
