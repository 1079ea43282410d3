import json

import pytest
from spikeexport.calibration.foundation.errors import PlanError, SpikeExportError, UsageError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.published import first_last_sites, published_sites
from spikeexport.calibration.structure.sites import DecoderStructure, Site, discover

from tests.calibration.models import load


def written(tmp_path, data):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(data))
    return path


def test_a_published_list_becomes_the_plan_with_siblings(tiny_llama_folder, sample_text_file, tmp_path):
    path = written(tmp_path, [["layers.1.mlp.down_proj", 4136.0], ["layers.2.mlp.up_proj", 11.7]])
    checkpoint, model = load(tiny_llama_folder)
    wishes = {"samples": 4, "seqlen": 32, "qfep": "off", "qfem": str(path)}
    plan, _ = make_plan(checkpoint, model, PlanOptions(calibration=(str(sample_text_file),), **wishes))
    assert set(plan.excluded_linears) == {
        "model.layers.1.mlp.down_proj",
        "model.layers.2.mlp.gate_proj",
        "model.layers.2.mlp.up_proj",
    }
    assert plan.excluded[0].why == "published ratio 4136"


def test_names_of_an_older_mixture_layout_are_understood(tmp_path):
    experts = [
        Site(
            f"model.layers.1.mlp.experts.{expert}.{name}", (f"model.layers.1.mlp.experts.{expert}.{name}",), 1, 8, None
        )
        for expert in range(4)
        for name in ("gate_proj", "down_proj")
    ]
    structure = DecoderStructure(("model.layers.0", "model.layers.1"), tuple(experts))
    entries = [["layers.1.block_sparse_moe.experts.3.w2", 21696.0], ["layers.1.block_sparse_moe.gate", 9.0]]
    assert published_sites(structure, written(tmp_path, entries)) == {"model.layers.1.mlp.experts.3.down_proj": 21696.0}
    with pytest.raises(PlanError, match=r"layers\.7\.mlp\.down_proj.*2 layers"):
        published_sites(structure, written(tmp_path, [["layers.7.mlp.down_proj", 5.0]]))


@pytest.mark.parametrize("data", [{}, [], ["layers.1.mlp.down_proj"], [["layers.1.mlp.down_proj", -1]], [[1, 2]]])
def test_a_malformed_list_is_refused(data, tmp_path, tiny_llama_folder):
    structure = discover(load(tiny_llama_folder)[1])
    with pytest.raises(PlanError, match=r"list\.json"):
        published_sites(structure, written(tmp_path, data))
    with pytest.raises(SpikeExportError, match="does not exist"):
        published_sites(structure, tmp_path / "absent.json")


def test_first_and_last_layers(tiny_llama_folder):
    structure = discover(load(tiny_llama_folder)[1])
    assert first_last_sites(structure, 1) == ("model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj")
    assert PlanOptions(qfem="first-last:3").first_last == 3
    for wish in ("first-last:0", "first-last:x", "first-last"):
        with pytest.raises(UsageError, match="--qfem first-last"):
            _ = PlanOptions(qfem=wish).alpha
    with pytest.raises(UsageError, match="--max-excluded"):
        PlanOptions(max_excluded=1.5)
