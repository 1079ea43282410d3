"""Comparing output by output: the lowered graph against the portable one, and a planted difference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.backends.tensorrt.polygraphy_compare import largest_differences, onnx_runner, prompt_feeds
from spikeexport.graphs.saving import save_model
from spikeexport.graphs.tensorrt.lowering import write_lowered

from tests.constant_plan import portable_graph, write_portable
from tests.graphs.tensorrt import faults

TOLERANCE = 1e-5


def test_lowered_graph_differs_nowhere_and_a_changed_scale_from_its_layer_on(tiny_llama_folder, tmp_path):
    path = write_portable(tiny_llama_folder, tmp_path / "m.onnx", dtype="fp32")
    (tmp_path / "lowered").mkdir()
    lowered = write_lowered(path, tmp_path / "lowered")
    changed = portable_graph(tiny_llama_folder, dtype="fp32")
    faults.input_scale(changed, "model.layers.1.mlp.down_proj", np.array(0.5, np.float32))
    save_model(changed, tmp_path / "changed.onnx")
    shapes = {str(value.name): tuple(value.shape) for value in ir.load(path).graph.inputs}
    feeds = prompt_feeds(shapes, np.array([[5, 9, 17, 33]]), np.dtype(np.float32))
    same = largest_differences(onnx_runner(path), onnx_runner(lowered), feeds)
    assert len(same) == 7
    assert max(same.values()) < TOLERANCE
    other = largest_differences(onnx_runner(path), onnx_runner(tmp_path / "changed.onnx"), feeds)
    assert max(other[f"present.{layer}.{kind}"] for layer in (0, 1) for kind in ("key", "value")) == 0.0
    assert min(other["present.2.key"], other["logits"]) > 1e-3
