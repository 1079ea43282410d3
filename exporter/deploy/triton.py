"""The `triton` layout: a model repository for NVIDIA Triton Inference Server.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html; the
fields are those of ModelConfig in its model_config.proto.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spikeexport.backends.manifest import Signature, TensorSpec
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.deploy.source import Source, write_onnx

VERSION = "1"
TOKENIZER_FOLDER = "tokenizer"

TYPES = {
    "fp32": "TYPE_FP32",
    "fp16": "TYPE_FP16",
    "bf16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}
"""Our words for element types -> Triton's."""

_PLATFORMS = {"onnx": "onnxruntime_onnx", "onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_DEVICES = {"onnx": "KIND_AUTO", "onnxruntime": "KIND_CPU", "tensorrt": "KIND_GPU"}
_PROFILES = ("0", "1")


class Word(str):
    """A value that text protobuf writes without quotes, such as a member of an enumeration."""


def write_triton(source: Source, folder: Path) -> tuple[str, ...]:
    """Writes `<model>/config.pbtxt`, `<model>/1/` with the model and `<model>/tokenizer/` into `folder`.

    Args:
        source: An .onnx, or what the onnxruntime or tensorrt backend built.
        folder: A new folder, the repository.

    Returns:
        The command that starts the server; `{folder}` stands for the final folder.

    Raises:
        UsageError: An engine that Triton has no backend for.
        BackendError: An engine built before its inputs were recorded.
    """
    if source.kind not in _PLATFORMS:
        raise UsageError(
            f"{source.path} is a {source.kind} engine, and Triton's backend loads TensorRT's own: build with "
            "--backend tensorrt, or deploy the .onnx."
        )
    name = repository_name(source.model)
    model = folder / name
    (model / VERSION).mkdir(parents=True)
    (model / TOKENIZER_FOLDER).mkdir()
    source.copy_tokenizer(model / TOKENIZER_FOLDER)
    signature = _write_model(source, model / VERSION)
    (model / "config.pbtxt").write_text(to_text(triton_config(name, source.kind, signature)), encoding="utf-8")
    return (_start_command(source),)


def triton_config(name: str, kind: str, signature: Signature) -> dict[str, Any]:
    """Returns the fields of ModelConfig; batch axes are spelt out (max_batch_size 0), since the mask's differs."""
    group: dict[str, Any] = {"count": 1, "kind": Word(_DEVICES[kind])}
    if kind == "tensorrt":
        # The server takes the profile that fits a request: prefill or decode.
        group["profile"] = _PROFILES
    return {
        "name": name,
        "platform": _PLATFORMS[kind],
        "max_batch_size": 0,
        "input": [_tensor(item) for item in signature.inputs],
        "output": [_tensor(item) for item in signature.outputs],
        "instance_group": [group],
    }


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """Writes a message as text protobuf."""
    return "".join(_field(key, value, indent) for key, value in message.items())


def repository_name(model: str) -> str:
    """Returns a checkpoint's name as a folder name that Triton takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(model).stem if model.endswith(".gguf") else model).strip("._") or "llm"


def _field(key: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{key} {{\n{to_text(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, list):
        return "".join(_field(key, item, indent) for item in value)
    if isinstance(value, tuple):
        return f"{indent}{key}: [{', '.join(_scalar(item) for item in value)}]\n"
    return f"{indent}{key}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def _tensor(item: TensorSpec) -> dict[str, Any]:
    return {"name": item.name, "data_type": Word(TYPES[item.dtype]), "dims": item.shape}


def _write_model(source: Source, folder: Path) -> Signature:
    if source.kind != "tensorrt":
        return write_onnx(source, folder)
    from spikeexport.backends.tensorrt.request import ENGINE_NAME

    assert source.manifest is not None, "an engine has a manifest"
    if source.manifest.signature is None:
        raise BackendError(f"{source.path} does not say which inputs it has: build it again.")
    shutil.copyfile(source.path / ENGINE_NAME, folder / "model.plan")
    return source.manifest.signature


def _start_command(source: Source) -> str:
    gpus = "--gpus all " if source.kind != "onnxruntime" else ""
    return (
        f"docker run --rm {gpus}-p 8000:8000 -p 8001:8001 -v {{folder}}:/models "
        "nvcr.io/nvidia/tritonserver:RELEASE-py3 tritonserver --model-repository=/models"
    )


def notes(source: Source) -> Iterable[str]:
    """Yields what a user has to know before the server starts."""
    if source.kind == "tensorrt":
        versions = source.manifest.versions if source.manifest is not None else {}
        found = versions.get("tensorrt", "that of the build")
        yield f"RELEASE: the one whose TensorRT is {found}; engines load in no other"
    else:
        built = source.manifest.versions.get("onnxruntime") if source.manifest is not None else None
        yield "RELEASE: one whose ONNX Runtime reads opset 23" + (f" (built with {built})" if built else "")
    yield (
        "a client tokenizes (the tokenizer lies beside the model), starts with past_key_values of length 0 and sends "
        "each answer's present.* back as the next past_key_values.*"
    )
