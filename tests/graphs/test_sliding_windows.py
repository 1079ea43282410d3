import numpy as np
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.graphs.families.windows import attention_windows
from spikeexport.graphs.portable import build_unquantised
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from tests.graphs.decoder_runs import largest_difference, open_session
from tests.naive_plan import naive_plan
from tests.tiny_models import tiny_family

IDS = np.random.default_rng(1).integers(3, 380, (1, 40))


@pytest.mark.parametrize("prefix", [(), (7, 300, 1)], ids=["plain", "prefix"])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_beyond_the_window_it_is_hugging_face(tmp_path, family, prefix):
    checkpoint = open_checkpoint(tiny_family(family, tmp_path / "model", sliding_window=8))
    assert 8 in attention_windows(checkpoint.config)
    model = load_model(checkpoint)
    plan = naive_plan(checkpoint, model, prefix=prefix, weights="fp")
    graph = build_unquantised(checkpoint, plan, {}, prefix_arrays(model, prefix), "fp32")
    for call, difference in largest_difference(open_session(graph, tmp_path), model, IDS, prefix).items():
        assert difference <= 1e-3, call


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (LlamaConfig(num_hidden_layers=2), (None, None)),
        (MistralConfig(num_hidden_layers=2, sliding_window=16), (16, 16)),
        (MistralConfig(num_hidden_layers=2, sliding_window=None), (None, None)),
        (Gemma2Config(num_hidden_layers=2, sliding_window=16), (16, None)),
        (Qwen2Config(num_hidden_layers=2, use_sliding_window=False, sliding_window=16), (None, None)),
    ],
)
def test_windows_are_those_of_the_configuration(config, windows):
    assert attention_windows(config) == windows
