"""Where ONNX Runtime runs a file, and whether it really does: it falls back to the CPU without an error."""

from __future__ import annotations

from typing import Any

from spikeexport.calibration.foundation.errors import BackendError, UsageError

CPU = "cpu"

PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    CPU: ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {}),
    "tensorrt": ("TensorrtExecutionProvider", {"trt_fp16_enable": "1", "trt_int8_enable": "1"}),
    "nvtensorrtrtx": ("NvTensorRTRTXExecutionProvider", {}),
}
"""Word after `--provider` -> ONNX Runtime's name for it and the options that it is opened with."""

_INSTALL = {
    "cuda": 'pip uninstall onnxruntime, then pip install "spikeexport[cuda]"',
    "tensorrt": 'pip uninstall onnxruntime, then pip install "spikeexport[cuda,tensorrt]"',
    "nvtensorrtrtx": "install a build of ONNX Runtime that has it, in place of onnxruntime",
}


def provider_list(onnxruntime: Any, word: str) -> list[str | tuple[str, dict[str, str]]]:
    """Returns the providers to open a session with: the one asked for, and the CPU for what it leaves.

    Raises:
        UsageError: No provider has that name.
        BackendError: The installed ONNX Runtime was built without it.
    """
    if word not in PROVIDERS:
        raise UsageError(f"--provider {word}: choose one of {', '.join(PROVIDERS)}.")
    if word == CPU:
        return [PROVIDERS[CPU][0]]
    name, options = PROVIDERS[word]
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise BackendError(
            f"--provider {word}: the installed onnxruntime {onnxruntime.__version__} has {', '.join(available)} and no "
            f"{name}: {_INSTALL[word]}."
        )
    return [(name, options), PROVIDERS[CPU][0]]


def require_provider(session: Any, word: str, model: str) -> None:
    """Refuses a session that runs elsewhere than asked for.

    Raises:
        BackendError: ONNX Runtime fell back.
    """
    name, found = PROVIDERS[word][0], session.get_providers()
    if found[:1] != [name]:
        raise BackendError(
            f"{model} was to run on {name}, and ONNX Runtime fell back to {', '.join(found)}: the GPU, its driver or a "
            "library of CUDA is missing; `spikeexport doctor` shows what answers, --provider cpu runs it here."
        )
