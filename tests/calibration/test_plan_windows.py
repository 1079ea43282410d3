import numpy as np
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.plan_windows import plan_windows
from spikeexport.calibration.text.unseen import UNSEEN, unseen_windows

from tests.calibration.models import load


def rows(windows):
    return {tuple(row) for row in windows}


def test_sampled_text_is_joined_by_prose_and_judged_on_other_prose(tiny_llama_folder):
    checkpoint, model = load(tiny_llama_folder)
    texts = plan_windows(checkpoint, model, PlanOptions(samples=8, seqlen=32))
    assert texts.info.sources == ("self", UNSEEN)
    assert texts.fit.shape == (12, 32)
    assert texts.info.samples == 12
    assert texts.held_out.shape == (2, 32)
    prose = rows(unseen_windows(checkpoint, 3 * 2 + len(texts.search), 32))
    assert rows(texts.held_out) | rows(texts.search) <= prose
    assert not rows(texts.held_out) & (rows(texts.search) | rows(texts.fit))
    assert len(rows(texts.fit) & prose) == 4
    again = plan_windows(checkpoint, model, PlanOptions(samples=8, seqlen=32))
    assert np.array_equal(again.fit, texts.fit)
    assert again.info == texts.info


def test_a_text_of_the_users_own_is_the_only_one(tiny_llama_folder, sample_text_file):
    checkpoint, model = load(tiny_llama_folder)
    texts = plan_windows(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), samples=8, seqlen=32))
    assert texts.info.sources == (sample_text_file.name,)
    assert (len(texts.fit), len(texts.held_out)) == (8, 2)
    assert not rows(texts.held_out) & rows(texts.fit)
