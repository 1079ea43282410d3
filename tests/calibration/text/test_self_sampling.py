import numpy as np
import pytest
import torch
from spikeexport.calibration.cache_argument import with_cache
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.text import calibration_windows, self_sampling
from spikeexport.calibration.text.growing_cache import growing_cache
from spikeexport.calibration.text.self_sampling import sample_from_model

from tests.tiny_models import BOS, EOS, FAMILIES, PAD, tiny_family, tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tiny_llama_folder):
    return open_checkpoint(tiny_llama_folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


def test_shape_seed_and_info(checkpoint, model):
    ids, info = calibration_windows(checkpoint, model, ["self"], 5, 40, seed=7)
    assert ids.shape == (5, 40)
    assert ids.dtype == np.int64
    again, _ = calibration_windows(checkpoint, model, ["self"], 5, 40, seed=7)
    other, _ = calibration_windows(checkpoint, model, ["self"], 5, 40, seed=8)
    assert np.array_equal(ids, again)
    assert not np.array_equal(ids, other)
    assert info.sources == ("self",)
    assert len({tuple(row) for row in ids.tolist()}) == 5


def test_the_batch_size_does_not_matter(checkpoint, model, monkeypatch):
    together = sample_from_model(checkpoint, model, 6, 24, seed=0)
    monkeypatch.setattr(self_sampling, "_MAX_BATCH", 4)
    assert np.array_equal(sample_from_model(checkpoint, model, 6, 24, seed=0), together)


def test_special_tokens_are_never_drawn(tmp_path):
    checkpoint = open_checkpoint(tiny_llama(tmp_path / "m"))
    model = load_model(checkpoint)
    with torch.no_grad():
        # EOS, BOS and padding would win nearly every draw.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[[PAD, BOS, EOS]] = 50 * model.lm_head.weight[[50, 60, 70]]
    ids = sample_from_model(checkpoint, model, 8, 64, seed=0)
    assert not np.isin(ids, [PAD, BOS, EOS]).any()


def test_rows_of_the_vocabulary_without_a_token_are_never_drawn(tmp_path):
    checkpoint = open_checkpoint(tiny_llama(tmp_path / "m", vocab_size=2000))
    assert sample_from_model(checkpoint, load_model(checkpoint), 8, 64, seed=0).max() < len(checkpoint.tokenizer())


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "phi3"])
def test_tokens_come_from_the_models_distribution(family, tmp_path):
    """Each drawn token is the one that the same number draws from a forward pass without a cache."""
    checkpoint = open_checkpoint(tiny_family(family, tmp_path / family))
    model = load_model(checkpoint)
    drawn = torch.from_numpy(sample_from_model(checkpoint, model, 3, 80, seed=5))
    numbers = torch.rand(3, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = model(torch.cat([torch.full((3, 1), BOS), drawn], dim=1)).logits[:, :-1].double()
        logits[..., [PAD, BOS, EOS]] = -torch.inf
        cumulative = logits.softmax(-1).cumsum(-1)
        before = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, drawn[..., None])[..., 0]
        upto = cumulative.gather(-1, drawn[..., None])[..., 0]
    assert (before - 1e-5 <= numbers).all()
    assert (numbers <= upto + 1e-5).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_keeps_what_the_whole_pass_sees(family, tmp_path):
    model = load_model(open_checkpoint(tiny_family(family, tmp_path / family)))
    ids = torch.randint(3, 384, (2, 90), generator=torch.Generator().manual_seed(0))
    cache = growing_cache(model.config, 90)
    with torch.inference_mode():
        whole = model(ids).logits
        steps = [model(part, **with_cache(model, cache)).logits for part in ids.split([10, *[1] * 70, 10], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


def _start(monkeypatch, checkpoint, **roles):
    tokenizer = checkpoint.tokenizer()
    for role in ("bos_token_id", "eos_token_id"):
        monkeypatch.setattr(type(tokenizer), role, roles.get(role), raising=False)
    return self_sampling._start_ids(checkpoint)


def test_where_a_model_without_bos_starts(tiny_llama_folder, monkeypatch):
    checkpoint = open_checkpoint(tiny_llama_folder)
    newline = checkpoint.tokenizer()("\n", add_special_tokens=False).input_ids
    assert self_sampling._start_ids(checkpoint) == [BOS]
    assert _start(monkeypatch, checkpoint, eos_token_id=EOS) == [EOS]
    assert _start(monkeypatch, checkpoint) == newline


def test_more_tokens_than_positions(checkpoint, model):
    with pytest.raises(CalibrationError, match=r"Sampling 2001 tokens per sequence exceeds the model's 1024 positions"):
        sample_from_model(checkpoint, model, 1, 2000, seed=0)


def test_logits_that_are_not_finite(checkpoint):
    model = load_model(checkpoint)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * torch.inf)
    with pytest.raises(CalibrationError, match="logits aren't finite"):
        sample_from_model(checkpoint, model, 2, 8, seed=0)


def test_few_sequences_at_a_time_where_the_cache_is_large(model, monkeypatch):
    # 3 layers x 2 heads x 16 values x 2 (keys, values) x 4 bytes = 768 bytes per token.
    monkeypatch.setattr(self_sampling, "_CACHE_BUDGET_BYTES", 768 * 100 * 10)
    assert self_sampling._batch_size(model, 40, 100) == 10
    assert self_sampling._batch_size(model, 12, 100) == 6
    assert self_sampling._batch_size(model, 3, 100) == 3
    assert self_sampling._batch_size(model, 40, 10**6) == 1


@pytest.mark.slow
def test_the_real_model_writes_words(smollm2):
    ids = sample_from_model(smollm2, load_model(smollm2), 4, 48, seed=0)
    text = " ".join(smollm2.tokenizer().decode(row) for row in ids)
    common = {"the", "a", "of", "and", "to", "in", "is", "for", "that", "you"}
    words = text.lower().split()
    assert sum(word in common for word in words) > len(words) / 12
    assert "<|" not in text
