"""Scores through lm-eval: any subject's equal those of lm-eval's own `hf` class, a prefix is counted out."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import SpikeExportError, UsageError
from spikeexport.completion import complete
from spikeexport.evaluate import evaluate
from spikeexport.runners.onnx_runner import open_onnx_runner
from spikeexport.runners.torch_runner import TorchRunner
from spikeexport.tasks.model import SpikeExportLM
from spikeexport.write_portable import write_portable

from tests.naive_plan import naive_plan

QUESTIONS = Path(__file__).with_name("questions")
OWN = ["seasons", "tales", "next_words"]
PREFIX = (9, 7, 1)
PAPER = {
    "wikitext": "word_perplexity",
    "piqa": "acc_norm",
    "lambada_openai": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
}


@pytest.fixture(scope="module")
def checkpoint(tiny_llama_folder):
    return open_checkpoint(tiny_llama_folder)


@pytest.fixture(scope="module")
def exports(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_portable(checkpoint, naive_plan(checkpoint, weights="fp"), {}, folder / "fp32.onnx", dtype="fp32")
    prefixed = naive_plan(checkpoint, weights="fp", prefix=PREFIX)
    write_portable(checkpoint, prefixed, {}, folder / "prefixed.onnx", dtype="fp32")
    return folder


@pytest.fixture(scope="module")
def hf(tiny_llama_folder, checkpoint):
    return HFLM(pretrained=load_model(checkpoint), tokenizer=checkpoint.tokenizer(), batch_size=3)


def requests(*arguments):
    kind = "loglikelihood" if isinstance(arguments[0][-1], str) else "generate_until"
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def test_scores_equal_those_of_hf_to_the_last_question(hf, exports, monkeypatch):
    # The data files are named relative to the YAMLs, which lm-eval by itself looks for in the working folder.
    monkeypatch.chdir(QUESTIONS)
    manager = TaskManager(include_path=QUESTIONS, include_defaults=False)
    asked = {"tasks": OWN, "task_manager": manager, "log_samples": True}
    expected = simple_evaluate(hf, **asked)
    found = simple_evaluate(SpikeExportLM(exports / "fp32.onnx"), **asked)
    for task in OWN:
        pairs = list(zip(expected["samples"][task], found["samples"][task], strict=True))
        assert len(pairs) >= 3
        for wanted, got in pairs:
            assert got["doc_id"] == wanted["doc_id"]
            _same_answers(got["filtered_resps"], wanted["filtered_resps"])
        for metric, value in expected["results"][task].items():
            if isinstance(value, float):
                assert found["results"][task][metric] == pytest.approx(value, rel=1e-4), metric


def _same_answers(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, str):
            assert got == wanted
        else:
            np.testing.assert_allclose(np.array(got, float), np.array(wanted, float), rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_batches_change_nothing(checkpoint, batch_size):
    runner = TorchRunner(checkpoint)
    asked = requests(("It was", " late"), ("It was", " very late in the year"), ("", "The train"), ("A", " b"))
    expected = SpikeExportLM(runner, batch_size=2).loglikelihood(asked)
    for got, wanted in zip(SpikeExportLM(runner, batch_size=batch_size).loglikelihood(asked), expected, strict=True):
        assert got[0] == pytest.approx(wanted[0], rel=1e-4)
    generated = requests(*((text, {"until": ["\n"], "max_gen_toks": 9}) for text in ("The", "It was a long", "A b c")))
    alone = [SpikeExportLM(runner, batch_size=1).generate_until([one])[0] for one in generated]
    assert SpikeExportLM(runner, batch_size=batch_size).generate_until(generated) == alone


def test_what_is_too_long_is_cut_as_hf_cuts_it(hf, checkpoint):
    ours = SpikeExportLM(TorchRunner(checkpoint), max_length=16)
    theirs = HFLM(pretrained=hf.model, tokenizer=hf.tokenizer, max_length=16)
    long = "The train left the station, and nobody had seen it come back before the evening. " * 2
    asked = requests((long, " It was late."))
    assert ours.loglikelihood(asked)[0][0] == pytest.approx(theirs.loglikelihood(asked, True)[0][0], rel=1e-4)
    rolling = [Instance("loglikelihood_rolling", {}, (long,), 0)]
    assert ours.loglikelihood_rolling(rolling)[0] == pytest.approx(
        theirs.loglikelihood_rolling(rolling, True)[0], rel=1e-4
    )
    prompt = requests((long, {"until": ["\n\n"], "max_gen_toks": 4}))
    assert ours.generate_until(prompt) == theirs.generate_until(prompt, True)


def test_a_prefix_stands_in_the_place_of_bos_and_takes_no_room(checkpoint, exports):
    model = load_model(checkpoint)
    behind = SpikeExportLM(open_onnx_runner(exports / "prefixed.onnx"))
    assert behind.max_length == 1024 - len(PREFIX)
    tokenizer = checkpoint.tokenizer()
    for context, continuation in (("The train", " left"), ("", "The train left")):
        ids = list(tokenizer(context, add_special_tokens=False).input_ids)
        targets = tokenizer(context + continuation, add_special_tokens=False).input_ids[len(ids) :]
        with torch.inference_mode():
            logits = model(torch.tensor([[*PREFIX, *ids, *targets]])).logits[0].log_softmax(-1)
        first = len(PREFIX) + len(ids) - 1
        expected = sum(float(logits[first + step, token]) for step, token in enumerate(targets))
        (found,) = behind.loglikelihood(requests((context, continuation)))
        assert found[0] == pytest.approx(expected, rel=1e-4)
    (rolled,) = behind.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("The train left",), 0)])
    assert rolled == pytest.approx(expected, rel=1e-4)


def test_completion_behind_a_prefix_equals_greedy_search(checkpoint, exports):
    model = load_model(checkpoint)
    prompts = [[20, 21, 22], [], [30]]
    found = complete(open_onnx_runner(exports / "prefixed.onnx"), prompts, 6)
    for prompt, ids in zip(prompts, found, strict=True):
        fed = torch.tensor([[*PREFIX, *prompt]])
        expected = model.generate(fed, attention_mask=torch.ones_like(fed), max_new_tokens=6, do_sample=False)
        assert ids == [int(token) for token in expected[0, fed.shape[1] :] if int(token) != 2]


def test_stop_texts_end_a_generation(checkpoint):
    runner = TorchRunner(checkpoint)
    (whole,) = SpikeExportLM(runner).generate_until(requests(("It was", {"until": [], "max_gen_toks": 20})))
    stop = whole[4:6]
    (cut,) = SpikeExportLM(runner).generate_until(requests(("It was", {"until": [stop], "max_gen_toks": 20})))
    assert cut == whole[: whole.index(stop)]


def test_local_data_stands_in_for_the_papers_data(tiny_llama_folder):
    result = evaluate(tiny_llama_folder, tasks=["spikes_paper"], tasks_dir=QUESTIONS, limit=2)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["task_samples"] == dict.fromkeys(PAPER, 2)
    for task, metric in PAPER.items():
        assert metric in data["tasks"][task], task
    assert data["tasks"]["lambada_openai"]["perplexity"] > 1
    assert data["perplexity"] is None


def test_tasks_and_a_text_in_one_call(tiny_llama_folder, sample_text_file):
    text = {"windows": 2, "seqlen": 16}
    result = evaluate(tiny_llama_folder, str(sample_text_file), tasks=["seasons"], tasks_dir=QUESTIONS, **text)
    assert result.perplexity == pytest.approx(evaluate(tiny_llama_folder, str(sample_text_file), **text).perplexity)
    assert 0 <= result.to_json()["tasks"]["seasons"]["acc"] <= 1


def test_bad_requests_are_one_sentence(tiny_llama_folder, tmp_path):
    with pytest.raises(UsageError, match=r"Unknown task 'piqua'.*piqa"):
        evaluate(tiny_llama_folder, tasks=["piqua"])
    with pytest.raises(UsageError, match="is no folder"):
        evaluate(tiny_llama_folder, tasks=["piqa"], tasks_dir=tmp_path / "gone")
    (tmp_path / "seasons.yaml").write_text((QUESTIONS / "seasons.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SpikeExportError, match=r"Task seasons cannot be loaded .*seasons\.jsonl"):
        evaluate(tiny_llama_folder, tasks=["seasons"], tasks_dir=tmp_path)


def test_lm_eval_knows_the_model_by_name(tiny_llama_folder, tmp_path):
    (entry,) = entry_points(group="lm_eval.models", name="spikeexport")
    assert entry.load() is SpikeExportLM
    command = [sys.executable, "-m", "spikeexport.tasks", "run", "--model", "spikeexport", "--tasks", "seasons"]
    command += ["--model_args", f"subject={tiny_llama_folder}", "--include_path", str(QUESTIONS)]
    command += ["--output_path", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=QUESTIONS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.glob("out*.json")
    ours = evaluate(tiny_llama_folder, tasks=["seasons"], tasks_dir=QUESTIONS).to_json()["tasks"]["seasons"]
    assert json.loads(written.read_text(encoding="utf-8"))["results"]["seasons"]["acc,none"] == ours["acc"]
