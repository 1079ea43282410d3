"""The table of kernels, from manifests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from spikeexport.backends.manifest import BuiltFile, EngineManifest, EngineTruth, Leftover

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("kernels_table", TOOLS / "kernels_table.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def manifest(planned: tuple[str, ...], **truth) -> EngineManifest:
    kernels = {"prefill": 30, "prefill_per_layer": 10, "decode": 33, "decode_per_layer": 11}
    return EngineManifest(
        backend="tensorrt-rtx",
        model="m",
        plan_sha256=None,
        onnx_sha256="0",
        linears=7,
        excluded=(),
        prefix=None,
        files=(BuiltFile(name="model.engine", size_bytes=12_400_000),),
        truth=EngineTruth(planned=planned, attention_fused=3, attention_layers=3, kernels=kernels, **truth),
        target={},
        versions={},
    )


def test_rows_say_what_was_compiled(tool):
    quantised = manifest(
        ("a", "b", "c"),
        merged={"x": ("a", "b"), "y": ("c",)},
        leftovers={"quantize": Leftover(count=3, bytes_moved=576)},
    )
    lines = tool.table({"INT8": quantised, "plain": manifest(())}).splitlines()
    assert lines[2] == "| INT8 | 10 / 11 | 30 / 33 | 3 of 3 | 2 | 3 of 3 | 3 quantize (576 B) | 12 |"
    assert lines[3] == "| plain | 10 / 11 | 30 / 33 | - | - | 3 of 3 | none | 12 |"
    assert len({line.count("|") for line in lines}) == 1
