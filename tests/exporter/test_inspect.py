"""`inspect` on every kind of file, with the keys that programs read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import BackendError, GraphError, PlanError, SpikeExportError
from spikeexport.calibration.records.model_id import CalibrationInfo, ModelId
from spikeexport.calibration.records.plan import save_plan
from spikeexport.calibration.records.profile import ModuleSpikes, Profile
from spikeexport.graphs.reading import read_portable
from spikeexport.graphs.saving import save_model
from spikeexport.inspect import inspect

from tests.constant_plan import portable_graph, write_portable
from tests.graphs.tensorrt import faults

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def onnx(tiny_llama_folder, tmp_path_factory) -> Path:
    return write_portable(tiny_llama_folder, tmp_path_factory.mktemp("portable") / "tiny.onnx", excluded=(DOWN,))


def test_onnx(onnx):
    found = inspect(onnx)
    assert (found["kind"], found["linears"], found["quantized"]) == ("onnx", 21, 20)
    assert found["excluded"] == [DOWN]
    assert found["prefix"] is None
    assert found["findings"] == []
    assert found["size_bytes"] == sum(file.stat().st_size for file in onnx.parent.iterdir())
    assert "spikeexport" in found["versions"]
    assert json.loads(json.dumps(found)) == found


def test_quantized_is_counted_in_the_graph_and_not_taken_from_the_plan(tiny_llama_folder, tmp_path):
    model = portable_graph(tiny_llama_folder)
    faults.float_activation(model, DOWN)
    save_model(model, tmp_path / "faulty.onnx")
    found = inspect(tmp_path / "faulty.onnx")
    assert found["quantized"] == 20
    costly = [(item["rule"], item["modules"]) for item in found["findings"] if item["effect"] == "fallback"]
    assert costly == [("float-activation", [DOWN])]


def test_engine_by_folder_and_by_manifest(onnx, tmp_path):
    built = build(onnx, tmp_path / "tiny.rtx", backend="tensorrt-rtx", max_batch=1, max_seq=32)
    found = inspect(built.path)
    assert inspect(built.path / "engine.json") == found
    assert (found["backend"], found["linears"], found["int8"]) == ("tensorrt-rtx", 21, 20)
    assert found["int8_coverage"] == 1.0
    assert found["fallbacks"] == []
    assert found["attention_fused"] == 3
    assert found["size_bytes"] > 10_000
    assert json.loads(json.dumps(found)) == found
    (built.path / "model.engine").unlink()
    with pytest.raises(BackendError, match=r"model\.engine is missing"):
        inspect(built.path)


def test_profile(tmp_path):
    profile = Profile(
        model=ModelId(name="m", model_type="llama", layers=1, fingerprint="0" * 16),
        calibration=CalibrationInfo(sources=("self",), samples=1, seqlen=8, seed=0, sha256="0"),
        modules=(ModuleSpikes(name=DOWN, site=DOWN, max=9.0, median=1.0, ratio=9.0),),
        spike_tokens=(),
        hidden_states=(),
        seconds=1.0,
    )
    profile.save(tmp_path / "profile.json")
    found = inspect(tmp_path / "profile.json")
    assert found["modules"] == [{"name": DOWN, "site": DOWN, "max": 9.0, "median": 1.0, "ratio": 9.0, "tokens": None}]
    assert {"spike_tokens", "model", "calibration"} <= set(found)


def test_recipe(onnx, tmp_path):
    plan = read_portable(onnx).plan
    save_plan(plan, {}, tmp_path / "recipe.json")
    found = inspect(tmp_path / "recipe.json")
    assert (found["kind"], found["linears"], found["quantized"], found["excluded"]) == ("plan", 21, 20, [DOWN])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.json").write_text('{"kind": "notes"}', encoding="utf-8")
    with pytest.raises(SpikeExportError, match="nothing that spikeexport wrote"):
        inspect(tmp_path / "notes.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(SpikeExportError, match="not valid JSON"):
        inspect(tmp_path / "broken.json")
    (tmp_path / "old.json").write_text('{"kind": "profile", "schema_version": 0}', encoding="utf-8")
    with pytest.raises(PlanError, match="schema_version 0"):
        inspect(tmp_path / "old.json")
    with pytest.raises(SpikeExportError, match="is no built folder"):
        inspect(tmp_path)
    with pytest.raises(SpikeExportError, match="does not exist"):
        inspect(tmp_path / "absent.json")
    with pytest.raises(GraphError, match="does not exist"):
        inspect(tmp_path / "absent.onnx")


def test_an_onnx_of_another_exporter_is_linted_by_node(tiny_llama_folder, tmp_path):
    model = portable_graph(tiny_llama_folder)
    faults.weight_along_inputs(model, DOWN)
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "other", "2"
    for node in model.graph:
        node.metadata_props.clear()
    save_model(model, tmp_path / "foreign.onnx")
    found = inspect(tmp_path / "foreign.onnx")
    assert (found["written_by"], found["linears"], found["quantized"]) == ("other 2", 22, 21)
    assert [(item["node"], item["effect"]) for item in found["findings"]] == [(f"{DOWN}/MatMul", "fallback")]
    assert "along the input channels" in found["findings"][0]["why"]
    (tmp_path / "foreign.onnx.data").unlink()
    with pytest.raises(GraphError, match=r"foreign\.onnx\.data is missing"):
        inspect(tmp_path / "foreign.onnx")
