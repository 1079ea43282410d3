"""Output by output, an engine against the .onnx that it was built from, through Polygraphy's runners.

`spikeexport compare` judges a candidate by its text; this finds the output, a layer's keys or values, that goes wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.backends.tensorrt.flavor import TENSORRT_RTX, Flavor
from spikeexport.backends.tensorrt.request import ENGINE_NAME

Feeds = Mapping[str, np.ndarray]


def onnx_runner(path: Path) -> Any:
    """Returns a Polygraphy runner that executes an .onnx with ONNX Runtime on the CPU."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(str(path), providers=["CPUExecutionProvider"]), name=path.name)


def engine_runner(flavor: Flavor, folder: Path, profile: int) -> Any:
    """Returns a Polygraphy runner that executes a built engine on the GPU.

    Args:
        flavor: The library that built it.
        folder: The built folder.
        profile: Index of the optimisation profile.
    """
    # Polygraphy chooses between the two libraries when it is imported.
    if flavor is TENSORRT_RTX:
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    engine = EngineFromBytes(BytesFromPath(str(folder / ENGINE_NAME)))
    return TrtRunner(engine, name=folder.name, optimization_profile=profile)


def largest_differences(first: Any, second: Any, feeds: Feeds) -> dict[str, float]:
    """Runs two Polygraphy runners on the same inputs.

    Args:
        first: A runner that is not active yet.
        second: Another.
        feeds: Input name -> array.

    Returns:
        Output name -> largest absolute difference, for the outputs that both have.
    """
    results = []
    for runner in (first, second):
        with runner:
            outputs = runner.infer(feed_dict=dict(feeds))
            results.append({name: np.asarray(value, dtype=np.float32) for name, value in outputs.items()})
    shared = [name for name in results[0] if name in results[1]]
    return {name: float(np.abs(results[0][name] - results[1][name]).max(initial=0.0)) for name in shared}


def prompt_feeds(
    inputs: Mapping[str, tuple[int | str, ...]], ids: np.ndarray, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Returns a decoder's inputs for a prompt without a cache.

    Args:
        inputs: Input name -> shape, dynamic axes as names.
        ids: int64 [B, S].
        dtype: Element type of the cache.
    """
    mask = np.ones_like(ids)
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(axis=1) - 1}
    for name, shape in inputs.items():
        if name.startswith("past_key_values."):
            feeds[name] = np.zeros((len(ids), int(shape[1]), 0, int(shape[3])), dtype)
    return feeds
