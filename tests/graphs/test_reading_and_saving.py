import os
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from spikeexport.calibration.foundation.errors import GraphError, PlanError
from spikeexport.graphs.portable import build_portable
from spikeexport.graphs.reading import read_portable
from spikeexport.graphs.saving import save_model

from tests.naive_plan import naive_plan


@pytest.fixture(scope="module")
def original(grouped, tmp_path_factory):
    plan = naive_plan(grouped, exclude=["model.layers.0.mlp.down_proj"])
    folder = tmp_path_factory.mktemp("written")
    save_model(build_portable(grouped, plan, {}, (), "fp16"), folder / "model.onnx")
    return folder, plan


@pytest.fixture
def written(original, tmp_path):
    folder, plan = original
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model.onnx", plan


def test_what_was_written_is_read_back(written, grouped):
    path, plan = written
    portable = read_portable(str(path))
    assert portable.plan == plan
    assert len(portable.linears) == 21
    assert portable.prefix is None
    assert portable.path == path
    name = "model.layers.1.mlp.up_proj.weight_q"
    assert isinstance(portable.model.graph.initializers[name].const_value, ir.ExternalTensor)


def test_one_data_file_with_large_tensors_aligned(written):
    path, _ = written
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    model = onnx.load(path, load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    facts = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    assert {fact["location"] for fact in facts} == {"model.onnx.data"}
    assert all(int(fact["offset"]) % 4096 == 0 for fact in facts if int(fact["length"]) > 65536)
    inline = [tensor.name for tensor in model.graph.initializer if tensor not in outside]
    assert "model.layers.0.mlp.up_proj.weight_scale" in inline


def test_reading_does_not_load_weights(written):
    path, _ = written
    size = path.with_name("model.onnx.data").stat().st_size
    assert path.stat().st_size < size


def test_missing_data_file(written):
    path, _ = written
    os.remove(f"{path}.data")
    with pytest.raises(GraphError, match=r"model\.onnx\.data is missing: model\.onnx keeps its weights there"):
        read_portable(path)


def test_cut_data_file(written):
    path, _ = written
    data = path.with_name("model.onnx.data")
    size = data.stat().st_size
    os.truncate(data, size - 1)
    with pytest.raises(GraphError, match=rf"is cut: it has {size - 1} bytes, model\.onnx expects {size}"):
        read_portable(path)


def test_data_outside_the_folder_is_not_trusted(written):
    path, _ = written
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    onnx.save(model, path)
    with pytest.raises(GraphError, match="outside its own folder"):
        read_portable(path)


@pytest.mark.parametrize("content", [b"", b"this is no protobuf at all", b"\x08"])
def test_corrupt_file(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"bad\.onnx is no readable ONNX file"):
        read_portable(path)


def test_truncated_graph(written):
    path, _ = written
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GraphError, match="is no readable ONNX file"):
        read_portable(path)


def test_missing_file(tmp_path):
    with pytest.raises(GraphError, match=r"none\.onnx does not exist"):
        read_portable(tmp_path / "none.onnx")


def test_foreign_file(tmp_path):
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 21}, name="g")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "foreign.onnx")
    with pytest.raises(GraphError, match="was not written by spikeexport"):
        read_portable(tmp_path / "foreign.onnx")


def test_malformed_plan_in_the_metadata(written):
    path, _ = written
    model = onnx.load(path, load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "spikeexport.plan":
            entry.value = entry.value.replace('"sites"', '"sights"')
    onnx.save(model, path)
    with pytest.raises(PlanError, match=r"model\.onnx \(spikeexport\.plan\): field"):
        read_portable(path)


def test_saving_keeps_the_graph_lazy(grouped, tmp_path):
    model = build_portable(grouped, naive_plan(grouped, weights="fp"), {}, (), "fp32")
    save_model(model, tmp_path / "model.onnx")
    name = "model.layers.0.mlp.up_proj.weight_t"
    assert isinstance(model.graph.initializers[name].const_value, ir.LazyTensor)
    stored = read_portable(tmp_path / "model.onnx").model.graph.initializers[name].const_value.numpy()
    assert (stored == grouped.read_tensor("model.layers.0.mlp.up_proj.weight").numpy().T).all()
    assert np.isfinite(stored).all()
