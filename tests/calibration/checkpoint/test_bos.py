from spikeexport.calibration.checkpoint import bos_id, open_checkpoint
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import BOS, EOS


def _tokenizer(folder, **roles):
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **roles)


def test_the_tokenizers_bos(tiny_llama_folder):
    checkpoint = open_checkpoint(tiny_llama_folder)
    assert bos_id(checkpoint) == bos_id(checkpoint.tokenizer()) == BOS


def test_eos_stands_in_where_the_tokenizer_begins_with_it(tiny_llama_folder):
    # The tiny tokenizer puts token 1 first: here that is its EOS, and it has no BOS.
    assert bos_id(_tokenizer(tiny_llama_folder, eos_token="<s>")) == BOS


def test_none_where_the_tokenizer_says_nothing(tiny_llama_folder):
    assert bos_id(_tokenizer(tiny_llama_folder, eos_token="</s>")) is None
    assert _tokenizer(tiny_llama_folder, eos_token="</s>").eos_token_id == EOS
