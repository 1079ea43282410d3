"""ONNX Runtime sessions: one place for threads, spinning, prepacking and exact u8 x s8 products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from spikeexport.calibration.foundation.errors import BackendError, one_line
from spikeexport.runners.cpu import physical_cores, u8s8_saturates
from spikeexport.runners.ort_provider import CPU, provider_list, require_provider

_WEIGHT_ONLY = {
    "session.qdq_matmulnbits_accuracy_level": "4",
    "session.qdq_matmulnbits_block_size": "128",
}


@dataclass(frozen=True)
class SessionSettings:
    """How ONNX Runtime uses the machine; the defaults are the fastest ones measured.

    Attributes:
        threads: Threads of one operator; None = the physical cores that this process may use.
        spinning: Whether idle threads wait actively; off costs 1.4 x in decode and saves power.
        taking_turns: Whether several sessions run in turns: threads of one stop waiting actively at its end, so that
            they take no core from the next (two sessions on two cores: decode 1.3 to 1.4 x faster).
        prepacking: Whether weights are re-laid for the kernels when loading; off costs 3 x prefill and 14 x decode.
        provider: Where operators run: a key of `PROVIDERS`.
        precise_int8: Whether u8 x s8 products avoid 16-bit sums; None = only on CPUs where those can saturate.
        initializers: Values in place of the file's, by the initializer's name.
    """

    threads: int | None = None
    spinning: bool = True
    prepacking: bool = True
    precise_int8: bool | None = None
    initializers: Mapping[str, np.ndarray] = field(default_factory=dict)
    provider: str = CPU
    taking_turns: bool = False


def open_session(
    model: Path,
    settings: SessionSettings,
    optimization: Literal["basic", "all"],
    optimized_to: Path | None = None,
    *,
    weight_only: bool = False,
) -> Any:
    """Opens a session on the provider that `settings` name, and makes sure that it runs there.

    Args:
        model: The .onnx file.
        settings: Threads and the like.
        optimization: "basic" leaves Q/DQ as they are (exact in floating point); "all" fuses.
        optimized_to: Where to write the graph that ONNX Runtime really runs, or None.
        weight_only: Whether DequantizeLinear + MatMul becomes MatMulNBits (ONNX Runtime 1.32 and later).

    Raises:
        BackendError: ONNX Runtime is not installed, refuses the file, or cannot run it on that provider.
        UsageError: An unknown provider.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.threads or physical_cores()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimization == "all" else level.ORT_ENABLE_BASIC
    for key, value in {**_entries(settings), **(_WEIGHT_ONLY if weight_only else {})}.items():
        options.add_session_config_entry(key, value)
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
        # Weights go into a file of their own: inside the graph's file they could not exceed 2 GB.
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", f"{optimized_to.name}.data")
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in settings.initializers.items()}
    for name, value in values.items():
        options.add_initializer(name, value)
    providers = provider_list(onnxruntime, settings.provider)
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exception types share no base class.
        raise BackendError(f"ONNX Runtime cannot load {model}: {one_line(error)}; write it again.") from error
    require_provider(session, settings.provider, model.name)
    # The session reads them where they lie, for as long as it lives.
    session.kept_initializers = values
    return session


def import_onnxruntime() -> Any:
    """Imports onnxruntime.

    Raises:
        BackendError: It is not installed or broken.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f'ONNX Runtime is not usable ({one_line(error)}): pip install "spikeexport[cpu]" installs it.'
        ) from error
    return onnxruntime


def _entries(settings: SessionSettings) -> dict[str, str]:
    precise = u8s8_saturates() if settings.precise_int8 is None else settings.precise_int8
    return {
        "session.intra_op.allow_spinning": "1" if settings.spinning else "0",
        "session.force_spinning_stop": "1" if settings.taking_turns else "0",
        "session.disable_prepacking": "0" if settings.prepacking else "1",
        "session.x64quantprecision": "1" if precise else "0",
    }
