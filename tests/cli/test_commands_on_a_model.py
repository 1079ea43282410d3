"""The commands that need only a MODEL, run in process on a tiny one."""

import json
from pathlib import Path

import pytest
from spikeexport.cli.main import app
from typer.testing import CliRunner


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_eval_prints_the_contract_keys(tiny_llama_folder, sample_text_file):
    result = run("eval", tiny_llama_folder, "--text", sample_text_file, "--windows", 3, "--seqlen", 16, "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (data["tokens"], data["windows"], data["seqlen"]) == (48, 3, 16)
    assert data["perplexity"] > 1
    assert data["perplexity_interval"][0] <= data["perplexity"] <= data["perplexity_interval"][1]


def test_no_bos_leaves_the_first_token_out(tiny_llama_folder, sample_text_file):
    text = ("--text", sample_text_file, "--windows", 3, "--seqlen", 16, "--json")
    assert json.loads(run("eval", tiny_llama_folder, *text, "--no-bos").stdout)["tokens"] == 45


def test_eval_asks_tasks(tiny_llama_folder):
    questions = Path(__file__).parents[1] / "exporter" / "tasks" / "questions"
    asked = ("eval", tiny_llama_folder, "--tasks", "seasons", "--tasks-dir", questions, "--limit", 3)
    data = json.loads(run(*asked, "--json").stdout)
    assert set(data["tasks"]["seasons"]) >= {"acc", "acc_norm"}
    assert data["task_samples"] == {"seasons": 3}
    table = run(*asked).stdout
    assert "acc_norm" in table
    assert "standard error" in table
    alone = run("eval", tiny_llama_folder, "--limit", 3)
    assert alone.exit_code == 2
    assert "belong to --tasks" in alone.stderr


def test_generate_streams_prompt_and_text(tiny_llama_folder):
    plain = run("generate", tiny_llama_folder, "The train", "--max-new-tokens", 5)
    data = json.loads(run("generate", tiny_llama_folder, "The train", "--max-new-tokens", 5, "--json").stdout)
    assert plain.stdout == f"The train{data['text']}\n"
    assert data["new_tokens"] == len(data["ids"]) <= 5


def test_compare_writes_its_report_twice_and_measures_the_noise(tiny_llama_folder, sample_text_file, tmp_path):
    files = ("--html", tmp_path / "r.html", "--markdown", tmp_path / "r.md", "--noise", "--generations", 1)
    arguments = ("compare", tiny_llama_folder, "--reference", tiny_llama_folder, "--text", sample_text_file)
    shown = run(*arguments, "--windows", 2, "--seqlen", 16, *files)
    assert shown.exit_code == 0
    assert "noise floor" in shown.stdout
    assert "Greedy continuations" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "## Greedy continuations" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_compare_holds_to_thresholds(tiny_llama_folder, sample_text_file):
    arguments = ("compare", tiny_llama_folder, "--reference", tiny_llama_folder, "--text", sample_text_file)
    arguments += ("--windows", 2, "--seqlen", 16)
    assert run(*arguments, "--fail-above", "kl=0.001").exit_code == 0
    failed = run(*arguments, "--fail-above", "perplexity_ratio=0.5", "--json")
    assert failed.exit_code == 3
    assert "check failed: perplexity_ratio is 1, above 0.5" in failed.stderr
    assert json.loads(failed.stdout)["failures"] == ["perplexity_ratio is 1, above 0.5"]
    unknown = run(*arguments, "--fail-above", "beauty=1")
    assert unknown.exit_code == 2
    assert "perplexity_ratio, perplexity, kl" in unknown.stderr


@pytest.mark.parametrize("command", ["eval", "profile"])
def test_a_missing_model_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(command, tmp_path / "nothing")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "nothing" in lines[0]
    assert list(tmp_path.iterdir()) == []
