"""Compares a built TensorRT engine with the .onnx that it came from, output by output (needs the engine's GPU).

python tools/compare_engine.py llama2.onnx llama2.tensorrt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
from spikeexport.backends.manifest import load_manifest
from spikeexport.backends.tensorrt.flavor import FLAVORS
from spikeexport.backends.tensorrt.polygraphy_compare import (
    engine_runner,
    largest_differences,
    onnx_runner,
    prompt_feeds,
)
from spikeexport.backends.tensorrt.profiles import PREFILL
from spikeexport.backends.tensorrt.runnable import require_runnable


def main() -> None:
    """Prints the outputs with their largest difference, largest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("built", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    manifest = load_manifest(arguments.built)
    flavor = FLAVORS[manifest.backend]
    require_runnable(flavor, arguments.built, manifest)
    graph = ir.load(arguments.onnx).graph
    shapes = {str(value.name): tuple(value.shape or ()) for value in graph.inputs}
    cache = next(value for value in graph.inputs if str(value.name).startswith("past_key_values."))
    ids = np.random.default_rng(0).integers(0, 1000, (1, arguments.tokens))
    feeds = prompt_feeds(shapes, ids, np.dtype(cache.dtype.numpy()))
    engine = engine_runner(flavor, arguments.built, PREFILL)
    found = largest_differences(onnx_runner(arguments.onnx), engine, feeds)
    for name, difference in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{difference:10.5f}  {name}")


if __name__ == "__main__":
    main()
