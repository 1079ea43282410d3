"""Polygraphy reads what is saved, and what it saved is compared in place of running."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults
from spikeexport.calibration.foundation.errors import SpikeExportError, UsageError
from spikeexport.compare.compare import compare

SETTINGS = {"windows": 2, "seqlen": 24, "layers": False, "generations": 0}
POLYGRAPHY = Path(sys.executable).with_name("polygraphy")


@pytest.fixture(scope="module")
def text(sample_text_file):
    return str(sample_text_file)


@pytest.fixture(scope="module")
def saved(exports, tiny_llama_folder, text, tmp_path_factory):
    """A folder with inputs.json and outputs.json, and what was found when they were saved."""
    folder = tmp_path_factory.mktemp("saved")
    paths = {"save_outputs": folder / "outputs.json", "save_inputs": folder / "inputs.json"}
    found = compare(exports / "int8.onnx", tiny_llama_folder, text, **paths, **SETTINGS)
    return folder, found.to_json()


def polygraphy(*arguments):
    return subprocess.run([POLYGRAPHY, *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False)


def test_polygraphy_runs_on_the_saved_inputs_and_finds_the_saved_outputs(exports, saved):
    folder, _ = saved
    one_side = {}
    for name, iterations in RunResults.load(str(folder / "outputs.json")).items():
        one_side[name] = RunResults([(name, iterations)])
        one_side[name].save(str(folder / f"{name}.json"))
    assert set(one_side) == {"tiny-llama", "int8.onnx"}
    # plain.onnx computes what the model does, and something else than int8.onnx.
    for name, code in (("tiny-llama", 0), ("int8.onnx", 1)):
        run = polygraphy(
            *("run", exports / "plain.onnx", "--onnxrt", "--load-inputs", folder / "inputs.json"),
            *("--load-outputs", folder / f"{name}.json", "--save-outputs", folder / "polygraphy.json"),
            *("--atol", 1e-3, "--rtol", 0),
        )
        assert run.returncode == code, (run.stdout + run.stderr)[-3000:]
    inspected = polygraphy("inspect", "data", folder / "outputs.json")
    assert inspected.returncode == 0
    assert "tiny-llama" in inspected.stdout
    assert "logits" in inspected.stdout


def test_what_polygraphy_saved_is_compared_in_place_of_running(exports, saved, tiny_llama_folder, text):
    folder, _ = saved
    polygraphy(
        *("run", exports / "plain.onnx", "--onnxrt", "--load-inputs", folder / "inputs.json"),
        *("--save-outputs", folder / "polygraphy.json"),
    )
    # The candidate's name only tells tokenizer and prefix: the logits are plain.onnx's, which equal the model's.
    loaded = {"load_outputs": folder / "polygraphy.json"}
    data = compare(exports / "int8.onnx", tiny_llama_folder, text, **loaded, **SETTINGS).to_json()
    assert data["kl_divergence"] < 1e-6
    assert "polygraphy.json" in data["candidate"]


@pytest.mark.parametrize("target", ["outputs.json", "outputs"])
def test_saved_outputs_give_the_same_figures(exports, tiny_llama_folder, text, tmp_path, target):
    path = tmp_path / target
    pair = exports / "prefixed.onnx", tiny_llama_folder, text
    expected = compare(*pair, save_outputs=path, **SETTINGS).to_json()
    found = compare(*pair, load_outputs=path, **SETTINGS).to_json()
    assert found["perplexity"] == expected["perplexity"]
    assert found["kl_by_position"] == expected["kl_by_position"]
    assert path.is_dir() == (target == "outputs")


def test_outputs_of_other_windows_are_refused(exports, saved, tiny_llama_folder, text):
    folder, _ = saved
    for changed, words in (({"seqlen": 20}, r"expected \[1, 20, 384\]"), ({"windows": 3}, "fewer windows")):
        with pytest.raises(SpikeExportError, match=words):
            compare(
                *(exports / "int8.onnx", tiny_llama_folder, text),
                load_outputs=folder / "outputs.json",
                **{**SETTINGS, **changed},
            )


def test_bad_files_are_one_sentence(exports, tiny_llama_folder, text, tmp_path):
    pair = exports / "int8.onnx", tiny_llama_folder, text
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SpikeExportError, match="does not exist"):
        compare(*pair, load_outputs=tmp_path / "gone.json", **SETTINGS)
    with pytest.raises(SpikeExportError, match="holds no outputs of Polygraphy"):
        compare(*pair, load_outputs=tmp_path / "broken.json", **SETTINGS)
    results = RunResults()
    for name in ("a", "b"):
        results.add([{"logits": np.zeros((1, 2, 3), np.float32)}], runner_name=name)
    results.save(str(tmp_path / "two.json"))
    with pytest.raises(SpikeExportError, match=r"a, b, none of them int8\.onnx"):
        compare(*pair, load_outputs=tmp_path / "two.json", **SETTINGS)
    with pytest.raises(UsageError, match="name one as CANDIDATE"):
        compare(tiny_llama_folder, tiny_llama_folder, text, save_inputs=tmp_path / "in.json", **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "two.json"]
