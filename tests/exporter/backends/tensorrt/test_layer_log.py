"""The builder's list of layers, on a log recorded from a real build of a one-layer model with one planted fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from spikeexport.backends.tensorrt.layer_log import read_layer_log, split_top_level
from spikeexport.calibration.foundation.errors import BackendError

SAMPLE = Path(__file__).with_name("samples") / "rtx-1.7.1.116-layers.txt"


@pytest.fixture(scope="module")
def layers():
    return read_layer_log(["Compiler backend is used.", SAMPLE.read_text(encoding="utf-8")], "1.7.1.116")


def test_every_line_becomes_a_layer_of_its_profile(layers):
    lines = [line for line in SAMPLE.read_text(encoding="utf-8").splitlines() if line.startswith("Name: ")]
    assert len(layers) == len(lines)
    assert Counter(layer.profile for layer in layers) == {0: 23, 1: 16}


def test_merged_product_with_its_types_and_nodes(layers):
    product = next(layer for layer in layers if layer.name.startswith("model.layers.0.self_attn.v_proj/MatMul+"))
    assert product.kind == "gemm"
    assert [tensor.dtype for tensor in product.inputs] == ["int8"]
    assert product.inputs[0].dims == (-1, 64)
    assert product.constants[0].dtype == "int8"
    assert {f"model.layers.0.self_attn.{name}_proj/MatMul" for name in "qkv"} <= set(product.onnx_nodes)


def test_kernels_without_a_mark_belong_to_the_profile_of_their_subgraph(layers):
    unmarked = [layer for layer in layers if layer.kind == "kgen" and "[profile" not in layer.name]
    assert {layer.profile for layer in unmarked} == {0, 1}
    suffixes = {layer.name.rsplit("_", 2)[1]: layer.profile for layer in unmarked}
    assert len(suffixes) == 2


def test_log_without_layers_is_refused():
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1\.8 lists no layers"):
        read_layer_log(["Engine generation completed"], "1.8")
    with pytest.raises(BackendError, match="lists no layers"):
        read_layer_log(["Layers:\n\nI/O Tensors:"], "1.8")


def test_line_in_another_form_is_refused():
    with pytest.raises(BackendError, match="not in the known form"):
        read_layer_log(["Layers:\nName: a/MatMul, Kind: gemm, Inputs: []"], "1.8")


def test_names_may_hold_brackets_and_commas():
    line = (
        "Name: (Unnamed Layer* 44) [Cast, x]_myl1_0, LayerType: gemm, "
        "Inputs: [ { Name: f(a, b), Dimensions: [1,2], Datatype: Half, Format: (Linear) Row }], "
        "Outputs: [], TacticName: t, Metadata: [ONNX Layer: a[0], b][ONNX Layer: c]"
    )
    decode = line.replace("_myl1_0", " [profile 1]_myl3_0")
    layer, second = read_layer_log([f"Layers:\n{line}\n{decode}\n\nI/O Tensors:"], "1.7.1")
    assert (layer.profile, second.profile) == (0, 1)
    assert layer.name == "(Unnamed Layer* 44) [Cast, x]_myl1_0"
    assert layer.inputs[0].name == "f(a, b)"
    assert layer.inputs[0].dims == (1, 2)
    assert layer.onnx_nodes == ("a[0], b", "c")


def test_log_of_one_profile_only_is_refused():
    text = SAMPLE.read_text(encoding="utf-8")
    first = "\n".join(line for line in text.splitlines() if "[profile 1]" not in line and "_myl3_" not in line)
    with pytest.raises(BackendError, match=r"layers of the profiles \[0\], 2 were built"):
        read_layer_log([first], "1.7.1")


def test_split_top_level():
    assert split_top_level("a: [1,2], b: { x, y }, c") == ["a: [1,2]", "b: { x, y }", "c"]
