import json
import resource

import numpy as np
import onnx
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import GraphError, PlanError, SpikeExportError, UsageError
from spikeexport.calibration.records.plan import load_plan, save_plan
from spikeexport.compare.compare import compare
from spikeexport.export import export
from spikeexport.graphs.reading import read_portable
from spikeexport.inspect import inspect
from spikeexport.runners import open_subject
from transformers import AutoTokenizer

from tests.naive_plan import naive_plan
from tests.tiny_models import BOS, tiny_llama

PREFIX = (7, 300, BOS)
EXCLUDED = ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj")


@pytest.fixture(scope="module")
def recipe(tiny_llama_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    plan = naive_plan(open_checkpoint(tiny_llama_folder), prefix=PREFIX, exclude=EXCLUDED)
    save_plan(plan.model_copy(update={"alpha": 12.5}), {}, path)
    return path


@pytest.fixture(scope="module")
def exported(tiny_llama_folder, recipe, tmp_path_factory):
    """One export in FP16 that several tests look at: its folder and its result."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, export(tiny_llama_folder, folder / "tiny.onnx", recipe=recipe)


def everything_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_file_restores_its_plan(exported, recipe):
    folder, result = exported
    portable = read_portable(folder / "tiny.onnx")
    assert portable.plan == load_plan(recipe)[0] == result.plan
    assert portable.prefix.ids == PREFIX
    assert {file.name for file in folder.iterdir()} == {"tiny.onnx", "tiny.onnx.data", "tiny.assets"}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_other_types_pass_the_full_check(tiny_llama_folder, recipe, tmp_path, dtype):
    export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe, dtype=dtype)
    onnx.checker.check_model(str(tmp_path / "tiny.onnx"), full_check=True)


def test_json_has_the_contracts_keys(exported):
    folder, result = exported
    data = result.to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["onnx"] == str(folder / "tiny.onnx")
    assert (data["linears"], data["quantized"], data["excluded"]) == (21, 19, list(EXCLUDED))
    assert data["alpha"] == 12.5
    assert data["prefix"]["ids"] == list(PREFIX)
    assert 0 < data["seconds"] < 60
    assert data["peak_rss_bytes"] > 1 << 26
    assert data["parity"]["max_difference"] < 1e-4
    assert data["size_bytes"] == sum((folder / name).stat().st_size for name in ("tiny.onnx", "tiny.onnx.data"))


def test_assets_let_a_runner_do_without_the_checkpoint(exported):
    assets = exported[0] / "tiny.assets"
    needed = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= set(everything_in(assets))
    assert BOS not in AutoTokenizer.from_pretrained(assets)("A text.").input_ids


def test_plain_decoder_gives_the_models_own_text(tiny_llama_folder, tmp_path):
    import onnxruntime

    from tests.graphs.decoder_runs import call, reference_logits

    result = export(tiny_llama_folder, tmp_path / "plain.onnx", weights="fp", dtype="fp32")
    assert (result.to_json()["linears"], result.to_json()["quantized"], result.prefix) == (21, 0, None)
    session = onnxruntime.InferenceSession(tmp_path / "plain.onnx")
    ids = np.random.default_rng(0).integers(3, 380, (1, 20))
    expected = reference_logits(load_model(open_checkpoint(tiny_llama_folder)), ids)
    assert np.abs(call(session, ids)[0] - expected).max() < 1e-3
    operators = {node.op_type for node in read_portable(tmp_path / "plain.onnx").model.graph}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize(("qfep", "ids"), [("ids:7,300,1", PREFIX), ("auto", None), ("off", None)])
def test_plain_decoder_has_a_prefix_only_where_it_is_given(tiny_llama_folder, tmp_path, qfep, ids):
    result = export(tiny_llama_folder, tmp_path / "plain.onnx", weights="fp", dtype="fp32", qfep=qfep)
    assert (result.prefix.ids if result.prefix else None) == ids


def test_dry_run_decides_and_writes_nothing(tiny_llama_folder, recipe, tmp_path):
    data = export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe, dry_run=True).to_json()
    assert (data["onnx"], data["linears"], data["quantized"], data["excluded"]) == (None, 21, 19, list(EXCLUDED))
    assert everything_in(tmp_path) == []


def test_recipe_is_saved_with_what_was_decided(tiny_llama_folder, tmp_path):
    saved = tmp_path / "saved.json"
    result = export(tiny_llama_folder, tmp_path / "plain.onnx", weights="fp", save_recipe=saved, dry_run=True)
    assert load_plan(saved)[0] == result.plan


def test_same_recipe_gives_the_same_bytes(exported, tiny_llama_folder, recipe, tmp_path):
    export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe)
    for name in ("tiny.onnx", "tiny.onnx.data"):
        assert (tmp_path / name).read_bytes() == (exported[0] / name).read_bytes()


def test_earlier_export_is_replaced_as_a_whole(tiny_llama_folder, recipe, tmp_path):
    export(tiny_llama_folder, tmp_path / "tiny.onnx", weights="fp", dtype="fp32")
    (tmp_path / "tiny.assets/old.txt").touch()
    export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe)
    assert read_portable(tmp_path / "tiny.onnx").plan.weights == "int8"
    assert "tiny.assets/old.txt" not in everything_in(tmp_path)


def test_head_in_int8_makes_the_file_smaller(exported, tiny_llama_folder, recipe, tmp_path):
    smaller = export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe, lm_head="int8")
    assert smaller.size_bytes < exported[1].size_bytes


@pytest.mark.parametrize("argument", [{"qfem": "20"}, {"weights": "fp"}, {"exclude": ["*down*"]}, {"seqlen": 8}])
def test_recipe_allows_no_other_decision(tiny_llama_folder, recipe, tmp_path, argument):
    (name,) = argument
    with pytest.raises(UsageError, match=f"--{name} contradicts it"):
        export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe, **argument)


def test_recipe_of_another_model_is_refused(recipe, tmp_path):
    other = tiny_llama(tmp_path / "other", seed=5)
    with pytest.raises(PlanError, match=r"recipe.json was made for tiny-llama .* not for other"):
        export(other, tmp_path / "out" / "tiny.onnx", recipe=recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tiny", "tiny.engine", "folder.onnx"])
def test_output_has_to_be_an_onnx_file(tiny_llama_folder, recipe, tmp_path, name):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=r"\.onnx"):
        export(tiny_llama_folder, tmp_path / name, recipe=recipe)


@pytest.mark.parametrize("qfep", ["ids:7,x", "ids:7,999999", "ids:", "ids:-1"])
def test_prefix_that_is_none_is_refused(tiny_llama_folder, tmp_path, qfep):
    with pytest.raises(UsageError, match="--qfep"):
        export(tiny_llama_folder, tmp_path / "tiny.onnx", weights="fp", qfep=qfep)


def test_graph_that_differs_from_pytorch_leaves_nothing(tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("spikeexport.graphs.portable.attention_windows", lambda config: (4, 4, 4))
    with pytest.raises(GraphError, match=r"differs from PyTorch.*Nothing was written"):
        export(tiny_llama_folder, tmp_path / "out" / "tiny.onnx", weights="fp")
    assert not (tmp_path / "out").exists()


def test_weight_beyond_fp16_leaves_nothing(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    model = load_model(open_checkpoint(folder))
    model.model.norm.weight.data = model.model.norm.weight.data * 1e6
    model.lm_head.weight.data = model.lm_head.weight.data / 1e6
    model.save_pretrained(folder)
    with pytest.raises(GraphError, match=r"model\.norm\.weight: values up to .* do not fit FP16.*--dtype bf16"):
        export(folder, tmp_path / "out" / "tiny.onnx", weights="fp")
    assert everything_in(tmp_path / "out") == []
    export(folder, tmp_path / "out" / "tiny.onnx", weights="fp", dtype="bf16")


@pytest.fixture
def disk_that_takes_no_more():
    """The kernel refuses to write more than 60 kB of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_that_takes_no_more_leaves_nothing(tiny_llama_folder, recipe, tmp_path, disk_that_takes_no_more):
    with pytest.raises(SpikeExportError, match=r"Cannot write .*tiny\.onnx"):
        export(tiny_llama_folder, tmp_path / "tiny.onnx", recipe=recipe)
    assert everything_in(tmp_path) == []


def test_folder_that_cannot_be_written_is_one_sentence(tiny_llama_folder, recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpikeExportError, match="Cannot write"):
        export(tiny_llama_folder, tmp_path / "file" / "tiny.onnx", recipe=recipe)


def test_int8_cache_is_calibrated_saved_in_the_recipe_and_run(tiny_llama_folder, sample_text_file, tmp_path):
    choices = {"samples": 8, "seqlen": 64, "calibration": (str(sample_text_file),), "kv": "int8", "weights": "fp"}
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    result = export(tiny_llama_folder, first, **choices, dtype="fp32", save_recipe=tmp_path / "recipe.json")
    assert result.to_json()["kv"] == inspect(first)["kv"] == "int8"
    export(tiny_llama_folder, again, recipe=tmp_path / "recipe.json", dtype="fp32")
    assert first.with_name("first.onnx.data").read_bytes() == again.with_name("again.onnx.data").read_bytes()
    with open_subject(first) as runner, open_subject(tiny_llama_folder) as reference:
        ids = np.array([reference.tokenizer(sample_text_file.read_text()[:200])["input_ids"][:20]])
        expected = reference.prefill(ids)[0]
        logits, cache = runner.prefill(ids[:, :12])
        rest, _ = runner.decode(ids[:, 12:], cache)
    found = np.concatenate([logits, rest], axis=1)
    assert 1e-5 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05
    compared = compare(first, tiny_llama_folder, str(sample_text_file), windows=1, seqlen=16).to_json()
    assert 0 < compared["kl_divergence"] < 0.01
    assert len(compared["layers"]) > 3
    with pytest.raises(UsageError, match="The KV cache of --recipe is int8, so that --kv fp contradicts it"):
        export(tiny_llama_folder, again, recipe=tmp_path / "recipe.json", kv="fp")
