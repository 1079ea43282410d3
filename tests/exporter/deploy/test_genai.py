"""The genai layout, loaded and run by onnxruntime-genai itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.backends.manifest import MANIFEST_NAME, EngineManifest
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.deploy.deploy import deploy
from spikeexport.deploy.source import open_as_deployed, open_source
from spikeexport.generate import generate
from spikeexport.graphs.onnxruntime.usual_signature import UsualSignature
from spikeexport.graphs.passes.quantize_kv_cache import QuantizeKvCache
from spikeexport.graphs.saving import save_model
from spikeexport.inspect import inspect

from tests.exporter.deploy.conftest import PROMPT
from tests.lowered_models import portable

TOKENS = 24


def generated(folder, prompt=PROMPT, *arguments) -> str:
    command = [sys.executable, str(folder / "generate.py"), "--max-new-tokens", str(TOKENS), *arguments, prompt]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("kind", ["onnx", "onnxruntime"])
def test_same_tokens_as_our_own_runner(written, tmp_path, kind):
    subject = written.subject(kind)
    result = deploy(subject, tmp_path / "out", layout="genai")
    with open_as_deployed(open_source(subject)) as runner:
        expected = list(generate(runner, PROMPT, max_new_tokens=TOKENS).ids)
    assert len(set(expected)) > 3
    assert json.loads(generated(tmp_path / "out", PROMPT, "--ids")) == expected
    assert result.deployment.checked == 8


@pytest.mark.parametrize("written", [True], indirect=True, ids=["prefix"])
def test_a_forgotten_prefix_is_noticed_and_nothing_stays(written, tmp_path, monkeypatch):
    monkeypatch.setattr(UsualSignature, "__init__", lambda self, prefix: setattr(self, "_prefix", {}))
    with pytest.raises(BackendError, match="nothing was written"):
        deploy(written.built, tmp_path / "out", layout="genai")
    assert list(tmp_path.iterdir()) == []


def test_folder_says_what_it_is_and_how_to_run_it(written, tmp_path):
    out = tmp_path / "out"
    data = deploy(written.onnx, out, layout="genai", provider="nvtensorrtrtx").to_json()
    assert data["start"][-1] == f"python {out.resolve()}/generate.py 'Your prompt'"
    config = json.loads((out / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["provider_options"] == [{"NvTensorRtRtx": {}}]
    shown = inspect(out)
    assert (shown["kind"], shown["layout"]) == ("deployment", "genai")
    assert shown["onnx_sha256"] == inspect(written.built)["onnx_sha256"]
    deploy(written.onnx, out, layout="genai", provider="nvtensorrtrtx")


def test_what_cannot_be_deployed_is_refused(written, tmp_path):
    with pytest.raises(UsageError, match="lowered for the CPU"):
        deploy(written.built, tmp_path / "out", layout="genai", provider="cuda")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is no deployment"):
        deploy(written.built, tmp_path / "mine", layout="genai")
    with pytest.raises(UsageError, match="does not exist"):
        deploy(tmp_path / "absent", tmp_path / "out", layout="genai")
    with pytest.raises(UsageError, match=r"neither a built folder nor an \.onnx"):
        deploy(written.onnx.with_name("tiny.assets"), tmp_path / "out", layout="genai")


def test_batches_are_for_the_exported_file(written, tmp_path):
    built = deploy(written.built, tmp_path / "built", layout="genai").deployment
    assert any("one prompt at a time" in note for note in built.notes)
    assert not any("--decode" in note for note in built.notes)
    weight_only = build(written.onnx, tmp_path / "weight_only", backend="onnxruntime", decode="weight-only").path
    deployed = deploy(weight_only, tmp_path / "from_weight_only", layout="genai").deployment
    assert any("without `build --decode weight-only`" in note for note in deployed.notes)
    exported = deploy(written.onnx, tmp_path / "onnx", layout="genai").deployment
    assert not any("one prompt at a time" in note for note in exported.notes)
    prompts = ["the train", "a much longer prompt than the other one is"]
    alone = [json.loads(generated(tmp_path / "onnx", prompt, "--ids"))[:6] for prompt in prompts]
    assert in_one_batch(tmp_path / "onnx", prompts, 6) == alone


def in_one_batch(folder, prompts, count):
    code = f"""
import json, onnxruntime_genai as og
model = og.Model({str(folder)!r})
tokenizer = og.Tokenizer(model)
tokenizer.update_options(add_special_tokens="true")
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=60, do_sample=False, batch_size={len(prompts)})
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode_batch({prompts!r}))
rows = []
for _ in range({count}):
    generator.generate_next_token()
    rows.append([int(token) for token in generator.get_next_tokens()])
print(json.dumps([list(row) for row in zip(*rows)]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("written", [True], indirect=True, ids=["prefix"])
def test_an_int8_cache_is_served_too(written, tmp_path):
    model = ir.load(written.onnx)
    QuantizeKvCache({f"kv.{i}.{kind}": np.full((2, 16), 0.03) for i in range(3) for kind in ("key", "value")})(model)
    shutil.copytree(written.onnx.with_name("tiny.assets"), tmp_path / "kv.assets")
    ir.save(model, tmp_path / "kv.onnx", external_data="kv.onnx.data")
    assert deploy(tmp_path / "kv.onnx", tmp_path / "out", layout="genai").deployment.checked == 8
    config = deploy(tmp_path / "kv.onnx", tmp_path / "triton", layout="triton").path
    assert next(config.glob("*/config.pbtxt")).read_text().count("TYPE_INT8") == 12


def test_bf16_needs_a_gpu(tiny_llama_folder, tmp_path):
    save_model(portable(tiny_llama_folder, dtype="bf16"), tmp_path / "m.onnx")
    shutil.copytree(tiny_llama_folder, tmp_path / "m.assets")
    with pytest.raises(UsageError, match="is BF16, which ONNX Runtime does not compute on a CPU"):
        deploy(tmp_path / "m.onnx", tmp_path / "out", layout="genai")
    assert deploy(tmp_path / "m.onnx", tmp_path / "out", layout="genai", provider="cuda").deployment.checked == 0


def test_a_build_without_the_decode_form_generates_as_deployed(written, tmp_path):
    one_form = build(written.onnx, tmp_path / "one", backend="onnxruntime").path
    deployed = deploy(one_form, tmp_path / "out", layout="genai").deployment
    assert not any("--decode" in note for note in deployed.notes)
    expected = list(generate(one_form, PROMPT, max_new_tokens=TOKENS).ids)
    assert json.loads(generated(tmp_path / "out", PROMPT, "--ids")) == expected


def test_an_engine_is_refused_with_the_way_out(written, tmp_path):
    engine = open_source(written.built).path
    manifest = json.loads((engine / MANIFEST_NAME).read_text())
    copy = tmp_path / "engine"
    copy.mkdir()
    (copy / "config.json").write_bytes((engine / "config.json").read_bytes())
    EngineManifest.from_dict({**manifest, "backend": "tensorrt-rtx", "files": []}, "test").save(copy / MANIFEST_NAME)
    with pytest.raises(UsageError, match=r"loads \.onnx files: deploy the \.onnx"):
        deploy(copy, tmp_path / "out", layout="genai")


@pytest.mark.slow
def test_real_model_generates_the_same_text(smollm2_gguf, tmp_path):
    from spikeexport.export import export

    onnx = tmp_path / "smollm2.onnx"
    export(smollm2_gguf, onnx, samples=2, seqlen=64, qfem="off", qfep="ids:216,260,1")
    built = build(onnx, backend="onnxruntime").path
    deploy(built, tmp_path / "out", layout="genai")
    prompt = "The three primary colours are"
    with open_as_deployed(open_source(built)) as runner:
        expected = generate(runner, prompt, max_new_tokens=TOKENS)
    assert generated(tmp_path / "out", prompt).rstrip("\n") == expected.text.rstrip("\n")
