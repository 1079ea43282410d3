import json

import onnx_ir as ir
import pytest
import torch
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.mobius_source import build_decoder, known_architectures

from tests.tiny_models import tiny_family


class Altered:
    """A checkpoint with some of its tensors or its model_type replaced."""

    def __init__(self, checkpoint, tensors=None, without=(), model_type=None):
        self.name, self._checkpoint, self._tensors, self._without = "altered", checkpoint, tensors or {}, without
        self.config = checkpoint.config
        if model_type:
            self.config = type("Config", (), {"model_type": model_type})()

    def tensor_names(self):
        return sorted(({*self._checkpoint.tensor_names(), *self._tensors}) - set(self._without))

    def read_tensor(self, name):
        return self._tensors[name] if name in self._tensors else self._checkpoint.read_tensor(name)


def test_inputs_and_outputs_are_those_of_a_decoder(grouped):
    graph = build_decoder(grouped, ir.DataType.FLOAT16).graph
    names = [value.name for value in graph.inputs]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [value.name for value in graph.outputs][:3] == ["logits", "present.0.key", "present.0.value"]
    assert {value.dtype for value in list(graph.inputs)[3:]} == {ir.DataType.FLOAT16}


def test_weights_are_lazy_views_of_the_checkpoint(grouped):
    graph = build_decoder(grouped, ir.DataType.FLOAT).graph
    name = "model.layers.1.mlp.down_proj.weight"
    read = graph.initializers[name].const_value.numpy()
    assert read.ctypes.data == grouped.read_tensor(name).data_ptr()


def test_building_says_nothing(llama_variant, capfd, caplog):
    checkpoint = llama_variant("multi-query tied")
    capfd.readouterr()
    build_decoder(checkpoint, ir.DataType.FLOAT16)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert caplog.records == []


def test_warnings_of_mobius_become_details(tmp_path, capfd):
    from spikeexport.calibration.foundation import progress

    checkpoint = open_checkpoint(tiny_family("mistral", tmp_path, sliding_window=8))
    capfd.readouterr()
    progress.set_verbosity(1)
    try:
        build_decoder(checkpoint, ir.DataType.FLOAT)
    finally:
        progress.set_verbosity(0)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "mobius-onnx: Model declares a uniform sliding window" in captured.err


def test_unknown_architecture_lists_the_known_ones(grouped):
    with pytest.raises(GraphError, match=r"'warpformer' is not known.*llama.*mistral.*qwen3"):
        build_decoder(Altered(grouped, model_type="warpformer"), ir.DataType.FLOAT)
    assert "whisper" not in known_architectures()


def test_missing_weight_is_named(grouped):
    altered = Altered(grouped, without=["model.layers.2.mlp.up_proj.weight"])
    with pytest.raises(GraphError, match=r"first model\.layers\.2\.mlp\.up_proj\.weight"):
        build_decoder(altered, ir.DataType.FLOAT)


def test_weight_of_another_shape_is_named(grouped):
    altered = Altered(grouped, {"model.norm.weight": torch.ones(3)})
    with pytest.raises(GraphError, match=r"model\.norm\.weight has shape \[3\], the graph expects \[64\]"):
        build_decoder(altered, ir.DataType.FLOAT)


def test_weight_without_a_place_in_the_graph_is_refused(grouped):
    altered = Altered(grouped, {"model.layers.0.mlp.gate_proj.bias": torch.ones(128)})
    with pytest.raises(GraphError, match=r"no place in the graph.*first model\.layers\.0\.mlp\.gate_proj\.bias"):
        build_decoder(altered, ir.DataType.FLOAT)


def test_tied_head_is_not_a_weight_of_its_own(llama_variant):
    checkpoint = llama_variant("multi-query tied")
    assert json.loads((checkpoint.folder / "config.json").read_text())["tie_word_embeddings"]
    graph = build_decoder(checkpoint, ir.DataType.FLOAT).graph
    assert "lm_head.weight" not in graph.initializers
