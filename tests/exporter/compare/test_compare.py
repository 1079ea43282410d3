"""Comparing exports of a tiny model with the model."""

import json

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.compare.compare import compare
from spikeexport.evaluate import evaluate

from tests.tiny_models import tiny_llama

SETTINGS = {"windows": 4, "seqlen": 48}


@pytest.fixture(scope="module")
def text(sample_text_file):
    return str(sample_text_file)


def test_a_model_equals_itself(tiny_llama_folder, text):
    data = compare(tiny_llama_folder, tiny_llama_folder, text, **SETTINGS).to_json()
    assert data["kl_divergence"] == 0
    assert data["top1_agreement"] == data["top5_agreement"] == data["perplexity"]["ratio"] == 1
    assert data["logits"] == {"cosine": pytest.approx(1, abs=1e-6), "snr_db": 200.0, "max_abs": 0.0}
    assert data["tokens"] == 4 * 48
    assert {layer["snr_db"] for layer in data["layers"]} == {200.0}
    assert (data["first_bad_layer"], data["behind_prefix"]) == (None, None)


def test_perplexities_are_those_of_eval(exports, tiny_llama_folder, text):
    data = compare(exports / "int8.onnx", tiny_llama_folder, text, layers=False, **SETTINGS).to_json()
    for side, subject in (("reference", tiny_llama_folder), ("candidate", exports / "int8.onnx")):
        assert data["perplexity"][side] == pytest.approx(evaluate(subject, text, **SETTINGS).perplexity, rel=1e-5)
    assert 0 < data["kl_divergence"] < 0.05
    assert (
        data["perplexity"]["ratio_interval"][0] < data["perplexity"]["ratio"] < data["perplexity"]["ratio_interval"][1]
    )
    assert len(data["kl_by_position"]) == 48
    assert np.mean(data["kl_by_position"]) == pytest.approx(data["kl_divergence"], abs=1e-5)


def test_an_unquantised_export_is_the_model(exports, tiny_llama_folder, text):
    data = compare(exports / "plain.onnx", tiny_llama_folder, text, **SETTINGS).to_json()
    assert data["kl_divergence"] < 1e-6
    assert data["logits"]["max_abs"] < 1e-3
    assert min(layer["snr_db"] for layer in data["layers"]) > 90


def test_behind_a_prefix_the_reference_is_shown_twice(exports, tiny_llama_folder, text):
    data = compare(exports / "prefixed.onnx", tiny_llama_folder, text, layers=False, **SETTINGS).to_json()
    assert data["tokens"] == 4 * 48
    # A made-up prefix changes this random model far more than INT8 does: only behind it the two are close.
    assert data["kl_divergence"] > 0.1 > 0.05 > data["behind_prefix"]["kl_divergence"] > 0


def test_worst_windows_come_worst_first_with_their_text(exports, tiny_llama_folder, text, sample_text):
    result = compare(exports / "int8.onnx", tiny_llama_folder, text, layers=False, **SETTINGS)
    means = [window.kl.mean() for window in result.windows]
    worst = result.worst_windows
    assert [window.kl for window in worst] == sorted(means, reverse=True)[:3]
    tokenizer = open_checkpoint(tiny_llama_folder).tokenizer()
    ids = tokenizer(sample_text, add_special_tokens=False).input_ids
    start = worst[0].index * (len(ids) // 48) // 4 * 48
    assert worst[0].tokens == tuple(tokenizer.decode([token]) for token in ids[start : start + 48])


def test_json_is_plain(exports, tiny_llama_folder, text):
    result = compare(exports / "int8.onnx", tiny_llama_folder, text, fail_above={"kl": 1e-9}, **SETTINGS)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["failures"]
    assert data["failures"][0].startswith("kl is ")
    assert data["candidate_facts"]["quantized"] == 20


def test_text_sampled_from_the_reference_is_the_default(tiny_llama_folder):
    data = compare(tiny_llama_folder, tiny_llama_folder, windows=2, seqlen=8).to_json()
    assert (data["text"], data["tokens"]) == ("self", 16)


def test_other_vocabularies_are_refused(tiny_llama_folder, tmp_path, text):
    other = tiny_llama(tmp_path / "other", vocab_size=400)
    with pytest.raises(UsageError, match="share a tokenizer"):
        compare(other, tiny_llama_folder, text, **SETTINGS)


def test_a_damaged_model_is_seen(tiny_llama_folder, tmp_path, text):
    import torch

    checkpoint = open_checkpoint(tiny_llama_folder)
    model = load_model(checkpoint)
    torch.manual_seed(0)
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.data = weight.data + 0.2 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "damaged")
    checkpoint.tokenizer().save_pretrained(tmp_path / "damaged")
    data = compare(tmp_path / "damaged", tiny_llama_folder, text, **SETTINGS).to_json()
    assert data["kl_divergence"] > 0.1
    assert data["top1_agreement"] < 0.8
