"""The triton layout: config.pbtxt read by Triton's own schema, the model run as a client of the server would."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from spikeexport.backends.manifest import MANIFEST_NAME, EngineManifest, Signature, TensorSpec
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.deploy.deploy import deploy
from spikeexport.deploy.source import open_as_deployed, open_source
from spikeexport.generate import generate

from tests.exporter.deploy.conftest import PROMPT

ORT_TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}


@pytest.fixture(scope="module")
def schema():
    """Triton's ModelConfig, from the file inside tritonclient (importing that package would ask for gRPC)."""
    entry = next(file for file in files("tritonclient") or () if file.name == "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(entry.locate()))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(schema, repository: Path):
    config = next(repository.glob("*/config.pbtxt"))
    message = text_format.Parse(config.read_text(encoding="utf-8"), schema.ModelConfig())
    assert message.name == config.parent.name
    return message


@pytest.mark.parametrize("kind", ["onnx", "onnxruntime"])
def test_config_is_valid_and_says_what_the_model_has(written, tmp_path, schema, kind):
    deploy(written.subject(kind), tmp_path / "out", layout="triton")
    message = parsed(schema, tmp_path / "out")
    assert message.platform == "onnxruntime_onnx"
    assert message.max_batch_size == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / message.name / "1" / "model.onnx"))
    for declared, real in ((message.input, session.get_inputs()), (message.output, session.get_outputs())):
        assert [item.name for item in declared] == [item.name for item in real]
        for item, value in zip(declared, real, strict=True):
            assert schema.DataType.Name(item.data_type) == ORT_TYPES[value.type]
            assert list(item.dims) == [size if isinstance(size, int) else -1 for size in value.shape]
    assert (tmp_path / "out" / message.name / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["onnx", "onnxruntime"])
def test_a_client_gets_our_runners_tokens(written, tmp_path, kind):
    subject = written.subject(kind)
    result = deploy(subject, tmp_path / "out", layout="triton")
    repository = next(path for path in result.path.iterdir() if path.is_dir())
    with open_as_deployed(open_source(subject)) as runner:
        expected = generate(runner, PROMPT, max_new_tokens=12)
    assert as_a_client(repository, expected.prompt_tokens, 12) == list(expected.ids)


def as_a_client(repository: Path, prompt_tokens: int, count: int) -> list[int]:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(repository / "tokenizer")(PROMPT, return_tensors="np")["input_ids"]
    assert ids.shape[1] == prompt_tokens
    session = onnxruntime.InferenceSession(str(repository / "1" / "model.onnx"))
    names = [value.name for value in session.get_inputs()]
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    outputs = [value.name for value in session.get_outputs()]
    new, seen, found = ids.astype(np.int64), 0, []
    while len(found) < count:
        total = seen + new.shape[1]
        feeds = {"input_ids": new, "attention_mask": np.ones((1, total), np.int64), **past}
        if "position_ids" in names:
            feeds["position_ids"] = np.arange(seen, total, dtype=np.int64)[None]
        answer = dict(zip(outputs, session.run(None, feeds), strict=True))
        past = {name: answer[name.replace("past_key_values.", "present.")] for name in past}
        seen = total
        assert all(array.shape[2] == seen for array in past.values())
        new = answer["logits"][:, -1:].argmax(-1)
        found.append(int(new[0, 0]))
    return found


def fake_engine(written, folder: Path, backend: str, signature: Signature | None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes((written.built / "config.json").read_bytes())
    (folder / "model.engine").write_bytes(b"plan")
    manifest = json.loads((written.built / MANIFEST_NAME).read_text())
    changed = {**manifest, "backend": backend, "files": [], "versions": {"tensorrt": "10.16.1.11"}}
    changed["signature"] = signature.model_dump(mode="json") if signature else None
    EngineManifest.from_dict(changed, "test").save(folder / MANIFEST_NAME)
    return folder


def test_an_engine_of_tensorrt_keeps_both_profiles(written, tmp_path, schema):
    signature = Signature(
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(-1, -1)),),
        outputs=(TensorSpec(name="logits", dtype="fp16", shape=(-1, -1, 384)),),
    )
    engine = fake_engine(written, tmp_path / "engine", "tensorrt", signature)
    result = deploy(engine, tmp_path / "out", layout="triton")
    message = parsed(schema, tmp_path / "out")
    assert message.platform == "tensorrt_plan"
    assert list(message.instance_group[0].profile) == ["0", "1"]
    assert message.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "out" / message.name / "1" / "model.plan").read_bytes() == b"plan"
    assert "TensorRT is 10.16.1.11" in result.deployment.notes[0]


def test_engines_that_triton_cannot_load_are_refused(written, tmp_path):
    rtx = fake_engine(written, tmp_path / "rtx", "tensorrt-rtx", None)
    with pytest.raises(UsageError, match="is a tensorrt-rtx engine, and Triton's backend loads TensorRT's own"):
        deploy(rtx, tmp_path / "out", layout="triton")
    old = fake_engine(written, tmp_path / "old", "tensorrt", None)
    with pytest.raises(BackendError, match="does not say which inputs it has"):
        deploy(old, tmp_path / "out", layout="triton")
    assert not (tmp_path / "out").exists()
