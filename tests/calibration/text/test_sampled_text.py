import numpy as np
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.text import sampled_text as module
from spikeexport.calibration.text.sampled_text import sampled_text
from spikeexport.calibration.text.self_sampling import sample_from_model

from tests.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tiny_llama_folder):
    return open_checkpoint(tiny_llama_folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _no_model(checkpoint, model, samples, seqlen, seed=0):
    """Fails when the model would have to be run: there is none."""
    kept = type("Kept", (), {"dtype": model.dtype})()
    return sampled_text(checkpoint, kept, samples, seqlen, seed)


def test_the_second_time_takes_the_same_text_without_running_the_model(checkpoint, model):
    ids = sampled_text(checkpoint, model, 3, 20, 0)
    assert np.array_equal(ids, sample_from_model(checkpoint, model, 3, 20, 0, any_opening=True))
    assert np.array_equal(_no_model(checkpoint, model, 3, 20), ids)


def test_windows_are_passages_with_openings_of_their_own(checkpoint, model):
    ids = sampled_text(checkpoint, model, 20, 150, 0)
    passages = sample_from_model(checkpoint, model, 60, module.PASSAGE, 0, any_opening=True)
    assert np.array_equal(ids[0], passages[:3].ravel()[:150])
    openings = passages[:, 0]
    # Evenly over the vocabulary of 381 ordinary tokens: the model itself would begin with a few of them.
    assert len(set(openings.tolist())) > 45
    assert openings.min() > 2
    assert abs(openings.mean() - 192) < 50


def test_other_arguments_and_other_weights_give_other_text(checkpoint, model, tmp_path):
    ids = sampled_text(checkpoint, model, 3, 20, 0)
    other = open_checkpoint(tiny_llama(tmp_path / "other", seed=1))
    for again in (
        sampled_text(checkpoint, model, 3, 20, 1),
        sampled_text(other, load_model(other), 3, 20, 0),
    ):
        assert not np.array_equal(again, ids)
    assert sampled_text(checkpoint, model, 2, 20, 0).shape == (2, 20)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_file_is_sampled_again(checkpoint, model, cache, capsys, content):
    ids = sampled_text(checkpoint, model, 3, 20, 0)
    (file,) = (cache / "sampled").iterdir()
    if content is None:
        np.save(file, ids[:1])
    else:
        file.write_bytes(content)
    assert np.array_equal(sampled_text(checkpoint, model, 3, 20, 0), ids)
    assert "sampled again" in capsys.readouterr().err
    assert np.array_equal(np.load(file), ids)


def test_a_cache_that_cannot_be_written_only_warns(checkpoint, model, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path / "file")
    assert sampled_text(checkpoint, model, 2, 10, 0).shape == (2, 10)
    assert "not kept for the next time" in capsys.readouterr().err
