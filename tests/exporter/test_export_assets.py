import json

import pytest
from spikeexport.assets_folder import assets_name, without_leading_token, write_assets
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.records.plan import Prefix
from transformers import AutoTokenizer, GenerationConfig

from tests.tiny_models import BOS, EOS, tiny_llama

TEXT = "The ship left at 9 o'clock."
WITH_BOS = Prefix(ids=(7, 300, BOS), text="")
WITHOUT_BOS = Prefix(ids=(7, 300), text="")
BOS_PIECE = {"SpecialToken": {"id": "<s>", "type_id": 0}}
A, B = ({"Sequence": {"id": name, "type_id": number}} for name, number in (("A", 0), ("B", 1)))


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "model")


def written(folder, tmp_path, prefix):
    write_assets(open_checkpoint(folder), tmp_path / "assets", prefix)
    return AutoTokenizer.from_pretrained(tmp_path / "assets")


def change_settings(folder, **settings):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize("prefix", [None, WITHOUT_BOS])
def test_tokenizer_adds_bos_where_the_prefix_has_none(folder, tmp_path, prefix):
    original = AutoTokenizer.from_pretrained(folder)
    tokenizer = written(folder, tmp_path, prefix)
    assert tokenizer(TEXT).input_ids == original(TEXT).input_ids
    assert tokenizer(TEXT).input_ids[0] == BOS


def test_post_processor_no_longer_adds_bos(folder, tmp_path):
    tokenizer = written(folder, tmp_path, WITH_BOS)
    plain = AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False).input_ids
    assert tokenizer(TEXT).input_ids == plain
    assert tokenizer(TEXT, TEXT).input_ids == plain + plain
    assert BOS not in plain
    assert tokenizer.bos_token_id == BOS, "the token itself stays known"


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_flag_no_longer_adds_bos(folder, tmp_path, tokenizer_class):
    change_settings(folder, add_bos_token=True, tokenizer_class=tokenizer_class)
    assert AutoTokenizer.from_pretrained(folder)(TEXT).input_ids[0] == BOS
    tokenizer = written(folder, tmp_path, WITH_BOS)
    assert BOS not in tokenizer(TEXT).input_ids
    assert json.loads((tmp_path / "assets/tokenizer_config.json").read_text())["add_bos_token"] is False


def test_eos_behind_the_text_stays(folder, tmp_path):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    tokenizer["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [EOS], "tokens": ["</s>"]}
    file.write_text(json.dumps(tokenizer))
    ids = written(folder, tmp_path, WITH_BOS)(TEXT).input_ids
    assert ids[-1] == EOS
    assert BOS not in ids


def test_chat_template_sees_no_bos(folder, tmp_path):
    template = "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": "hello"}]
    chat = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert chat == "<s>[user]hello"
    assert written(folder, tmp_path, WITH_BOS).apply_chat_template(messages, tokenize=False) == "[user]hello"


def test_post_processor_of_several_parts():
    template = {
        "type": "TemplateProcessing",
        "single": [BOS_PIECE, A],
        "pair": [BOS_PIECE, A, BOS_PIECE, B],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
    }
    changed = without_leading_token({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}, BOS)
    assert changed["processors"][0] == {"type": "ByteLevel"}
    assert (changed["processors"][1]["single"], changed["processors"][1]["pair"]) == ([A], [A, B])
    assert without_leading_token(template, EOS) == template
    assert without_leading_token(None, BOS) is None


def test_configuration_and_generation_settings_are_there(folder, tmp_path):
    written(folder, tmp_path, None)
    settings = GenerationConfig.from_pretrained(tmp_path / "assets")
    assert (settings.bos_token_id, settings.eos_token_id) == (BOS, [EOS])
    assert json.loads((tmp_path / "assets/config.json").read_text())["model_type"] == "llama"


def test_checkpoint_is_left_as_it_was(folder, tmp_path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    written(folder, tmp_path, WITH_BOS)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_bos_that_cannot_be_switched_off_is_refused(folder, tmp_path):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["post_processor"] = {
        "type": "BertProcessing",
        "cls": ["<s>", BOS],
        "sep": ["</s>", EOS],
    }
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"puts BOS \(id 1\) in front of a text in a way that cannot be switched"):
        written(folder, tmp_path, WITH_BOS)


def test_folder_is_named_after_the_model():
    assert assets_name("llama2.onnx") == "llama2.assets"
