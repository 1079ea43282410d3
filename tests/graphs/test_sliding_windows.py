import pytest
from spikeexport.graphs.families.windows import attention_windows
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config


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
