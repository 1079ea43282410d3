import json

import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import CheckpointError

from tests.tiny_models import tiny_llama


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "deepseek_v3", "kv_lora_rank": 512},
            r"multi-head latent attention \(MLA\) \(kv_lora_rank 512\)",
        ),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            r"linear attention.*'lin",
        ),
        ({"model_type": "mamba"}, r"recurrent state \(layer type 'mamba'\)"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 8}}, r"a vision tower \(vision_config\)"),
        ({"model_type": "qwen3_vl", "text_config": {"kv_lora_rank": 4}}, "MLA"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, r"rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_type 'dynamic'"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder"),
    ],
)
def test_unsupported_feature_is_refused_by_name_with_what_is_supported(fields, message, tmp_path):
    folder = tiny_llama(tmp_path / "m")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()  # it is refused before any weight is looked for
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(folder)
    assert "supported are decoders of text" in str(error.value)
