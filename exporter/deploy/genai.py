"""The `genai` layout: a folder that onnxruntime-genai loads.

https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from spikeexport.backends.manifest import Signature, TensorSpec
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.deploy import genai_generate
from spikeexport.deploy.source import MODEL_NAME, Source, write_onnx

PROVIDERS: dict[str, dict[str, Any]] = {"cpu": {}, "cuda": {"cuda": {}}, "nvtensorrtrtx": {"NvTensorRtRtx": {}}}
"""Word after `--provider` -> the entry of `provider_options` in genai_config.json."""

SCRIPT_NAME = "generate.py"
PROVIDER_NOTE = "the folder was not tried here; the installed onnxruntime has to have the provider"
BOS_NOTE = (
    'a program of your own calls tokenizer.update_options(add_special_tokens="true"): onnxruntime-genai adds no BOS'
)

# Any plain decoder runs under this type; names of other families switch on what their own exports need.
_MODEL_TYPE = "llama"


def write_genai(source: Source, folder: Path, provider: str) -> tuple[str, ...]:
    """Writes model, tokenizer, genai_config.json and a script that generates into `folder`, which it makes.

    Args:
        source: An .onnx, or what the onnxruntime backend built.
        folder: A new folder.
        provider: A key of `PROVIDERS`.

    Returns:
        The commands that run it; `{folder}` stands for the final folder.

    Raises:
        UsageError: An engine, a GPU provider for a model lowered for the CPU, or BF16 on a CPU.
    """
    _require_fit(source, provider)
    folder.mkdir()
    source.copy_tokenizer(folder)
    signature = write_onnx(source, folder)
    if provider == "cpu" and any(item.dtype == "bf16" for item in signature.outputs):
        raise UsageError(
            f"{source.path} is BF16, which ONNX Runtime does not compute on a CPU: give --provider cuda, or export "
            "with --dtype fp16."
        )
    config = genai_config(source, signature, provider)
    (folder / "genai_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(genai_generate.__file__, folder / SCRIPT_NAME)
    package = {"cpu": "onnxruntime-genai", "cuda": "onnxruntime-genai-cuda"}.get(provider, "onnxruntime-genai")
    return (f"pip install {package}", f"python {{folder}}/{SCRIPT_NAME} 'Your prompt'")


def genai_config(source: Source, signature: Signature, provider: str) -> dict[str, Any]:
    """Returns the content of genai_config.json."""
    config, assets = source.config, source.assets
    caches = [item for item in signature.inputs if item.name.endswith(".key")]
    eos = list(assets.eos_ids)
    if not eos:
        raise BackendError(
            f"{source.path} names no token that ends a text (eos_token_id), which onnxruntime-genai needs: "
            "add it to generation_config.json beside the model."
        )
    session: dict[str, Any] = {"log_id": "spikeexport", "provider_options": []}
    if PROVIDERS[provider]:
        session["provider_options"] = [PROVIDERS[provider]]
    elif source.kind == "onnx":
        # What the file says, exactly; fusing s8 x s8 pairs on a CPU gives kernels that are several times slower.
        session["graph_optimization_level"] = "ORT_ENABLE_BASIC"
    return {
        "model": {
            "type": _MODEL_TYPE,
            "vocab_size": assets.vocab_size,
            "context_length": assets.max_positions,
            "bos_token_id": _first(config.get("bos_token_id"), eos[0]),
            "eos_token_id": eos,
            "pad_token_id": _first(config.get("pad_token_id"), eos[0]),
            "decoder": {
                "filename": MODEL_NAME,
                "session_options": session,
                "hidden_size": config["hidden_size"],
                "num_attention_heads": config["num_attention_heads"],
                "num_hidden_layers": len(caches),
                "num_key_value_heads": caches[0].shape[1],
                "head_size": caches[0].shape[3],
                "inputs": _inputs(signature.inputs),
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        # One buffer for past and present would hide the prefix, which the graph joins in front of the past.
        "search": {"max_length": assets.max_positions, "do_sample": False, "past_present_share_buffer": False},
    }


def _inputs(tensors: tuple[TensorSpec, ...]) -> dict[str, str]:
    plain = {item.name: item.name for item in tensors if not item.name.startswith("past_key_values.")}
    return {**plain, "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}


def _first(value: Any, otherwise: int) -> int:
    if value is None:
        return otherwise
    return int(value[0]) if isinstance(value, list) else int(value)


def _require_fit(source: Source, provider: str) -> None:
    if source.kind not in ("onnx", "onnxruntime"):
        raise UsageError(
            f"{source.path} is a {source.kind} engine, and onnxruntime-genai loads .onnx files: deploy the .onnx that "
            "it was built from (--provider nvtensorrtrtx runs it through TensorRT-RTX)."
        )
    if source.kind == "onnxruntime" and provider != "cpu":
        raise UsageError(
            f"{source.path} was lowered for the CPU: for --provider {provider} deploy the .onnx that `export` wrote."
        )
