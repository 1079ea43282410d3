"""The forms of one lowered model: decode and head compute what they should, from the prefill form's own weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planner import make_plan
from spikeexport.graphs.onnxruntime.forms import Forms, write_forms
from spikeexport.graphs.onnxruntime.lowering import DecodeForm, lower
from spikeexport.graphs.onnxruntime.merged_products import MergeProducts, ScalesBehind
from spikeexport.graphs.onnxruntime.split_head import split_head
from spikeexport.graphs.onnxruntime.weight_only_decode import WeightOnlyDecode
from spikeexport.graphs.portable import build_portable, decoder_linears
from spikeexport.runners.assets import Assets
from spikeexport.runners.engine_graphs import DECODE_NAME, HEAD_NAME
from spikeexport.runners.ort_engine_runner import EngineSettings, OrtEngineRunner

from tests.graphs.onnxruntime.test_families import EXACT, FAMILIES, TOLERANCE
from tests.lowered_models import ONE_THREAD, open_family_pair, open_pair, portable, random_ids
from tests.tiny_models import tiny_family


def written(
    folder: Path,
    work: Path,
    without: tuple[str, ...] = (),
    decode: DecodeForm = "weight-only",
    **options,
) -> Forms:
    model = portable(folder, dtype="fp32", **options)
    lower(model, without, decode)
    return write_forms(model, work / "model.onnx", (DECODE_NAME, HEAD_NAME), without, decode)


def reasons(forms: Forms) -> dict[str, str]:
    return {report.name: report.skips[0].why for report in forms.reports if report.skips}


def test_all_forms_read_one_weight_file(tiny_llama_folder, tmp_path):
    forms = written(tiny_llama_folder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DECODE_NAME, HEAD_NAME, "model.onnx", "model.onnx.data"]
    places = {}
    for form in (forms.prefill, forms.decode, forms.head):
        for name, value in form.graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensor = value.const_value
                assert places.setdefault(name, (tensor.location, tensor.offset)) == ("model.onnx.data", tensor.offset)
    weights = {name for name in forms.prefill.graph.initializers if ".weight_q" in name}
    assert weights == {name for name in forms.decode.graph.initializers if ".weight_q" in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_without_quantised_inputs_stays_one_graph(family, tmp_path):
    pair = open_family_pair(family, tmp_path, quantised=False, without=EXACT, decode="weight-only")
    done = {report.name: report.applied for report in pair.reports}
    assert (done["split-head"], done["decode-form"]) == (0, 0)
    ids = random_ids(2, 7)
    np.testing.assert_allclose(pair.lowered.prefill(ids)[0], pair.portable.prefill(ids)[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_multiplies_unquantised_inputs(family, tmp_path):
    """What decode computes is the portable file with every linear's input left unquantised."""
    # With every expert chosen: a router that is torn between two would make a step of a rounding.
    all_experts = {"num_experts_per_tok": 4} if family in ("mixtral", "qwen3_moe") else {}
    folder = tiny_family(family, tmp_path / "w8a8" / family, **all_experts)
    pair = open_pair(folder, tmp_path / "w8a8", without=EXACT, prefix=True, decode="weight-only")
    assert {report.name: report.applied for report in pair.reports}["weight-only-decode"] > 0
    every = decoder_linears(open_checkpoint(folder))
    w8a16 = open_pair(folder, tmp_path / "w8a16", without=EXACT, prefix=True, excluded=every)
    ids = random_ids(1, 6)
    # One token at a time from the start, so that no prefill form is in the cache.
    logits, cache = pair.lowered.prefill(ids[:, :1])
    found = [logits]
    for place in range(1, 6):
        logits, cache = pair.lowered.decode(ids[:, place : place + 1], cache)
        found.append(logits)
    expected, _ = w8a16.portable.prefill(ids)
    error = np.concatenate(found, axis=1) - expected
    # The kernel rounds each block of an input to INT8, which the portable file does not.
    assert error.std() < 0.03 * expected.std()
    assert (pair.lowered.prefill(ids)[0] - expected).std() > 1.5 * error.std()


@pytest.mark.parametrize("biased", [False, True])
def test_decode_undoes_the_shift_of_an_input(tmp_path, sample_text_file, biased):
    folder = tiny_family("llama", tmp_path / "model", mlp_bias=biased)
    if biased:
        _give_biases(folder)
    checkpoint = open_checkpoint(folder)
    wishes = {"samples": 4, "seqlen": 32, "qfem": "off", "qfep": "off", "smooth": "auto"}
    plan, tensors = make_plan(
        checkpoint, load_model(checkpoint), PlanOptions(calibration=(str(sample_text_file),), **wishes)
    )
    assert any(site.shift for site in plan.sites)
    model = build_portable(checkpoint, plan, tensors, dtype="fp32")
    lower(model, decode="weight-only")
    forms = write_forms(model, tmp_path / "model.onnx", (DECODE_NAME, HEAD_NAME), decode="weight-only")
    ops = [{node.op_type for node in form.graph} for form in (forms.prefill, forms.decode)]
    assert "Sub" in ops[0]
    assert "Sub" not in ops[1]
    adds = [node for node in forms.decode.graph if "down_proj" in str(node.name) and node.op_type == "Add"]
    assert len(adds) == (len(plan.sites) // 4 if biased else 0)
    for node in adds:
        name = str(node.name).removesuffix("/Add") + ".bias"
        expected = load_model(checkpoint).get_parameter(name).detach().numpy()
        np.testing.assert_allclose(node.inputs[1].const_value.numpy(), expected, atol=1e-4)


def _give_biases(folder: Path) -> None:
    path = folder / "model.safetensors"
    random = np.random.default_rng(5)
    tensors = load_file(path)
    biases = {name: random.normal(size=value.shape).astype(value.dtype) for name, value in tensors.items()}
    save_file({name: biases[name] if name.endswith("bias") else value for name, value in tensors.items()}, path)


@pytest.mark.parametrize(
    ("form", "step"), [("weight-only", WeightOnlyDecode), ("int8", MergeProducts), ("int8", ScalesBehind)]
)
def test_running_a_pass_twice_changes_nothing(tiny_llama_folder, tmp_path, form, step):
    forms = written(tiny_llama_folder, tmp_path, decode=form)
    again = step()
    assert not again(forms.decode or forms.prefill).modified
    assert (again.applied, again.skips) == (0, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_products_multiply_the_same_codes(family, tmp_path):
    off = (*EXACT, "merged-products", "scales-behind")
    merged = open_family_pair(family, tmp_path / "merged", without=EXACT, prefix=True)
    apart = open_family_pair(family, tmp_path / "apart", without=off, prefix=True)
    done = {report.name: report.applied for report in merged.reports}
    assert done["scales-behind"] > 0
    assert done["merged-products"] > 0 or family == "phi3"
    ids = random_ids(1, 9)
    found, expected = merged.lowered.prefill(ids)[0], apart.lowered.prefill(ids)[0]
    # A code at the border of two steps may fall on either side.
    assert np.median(np.abs(found - expected)) < 2e-4
    assert (found - expected).std() < 0.02 * expected.std()


def test_a_split_in_another_order_would_show(tiny_llama_folder, tmp_path):
    pair = open_pair(tiny_llama_folder, tmp_path, without=EXACT)
    expected, _ = pair.lowered.prefill(random_ids(1, 9))
    model = ir.load(tmp_path / "lowered.onnx")
    for node in model.graph:
        if node.op_type == "Split":
            first, second = node.outputs
            users = list(second.uses())
            ir.convenience.replace_all_uses_with(first, second)
            for user, place in users:
                user.replace_input_with(place, first)
    ir.save(model, tmp_path / "lowered.onnx")
    swapped = OrtEngineRunner(tmp_path / "lowered.onnx", Assets(tiny_llama_folder, ()), (), EngineSettings(ONE_THREAD))
    assert np.abs(swapped.prefill(random_ids(1, 9))[0] - expected).max() > 0.1


def test_one_graph_does_for_both_phases(tiny_llama_folder, tmp_path):
    forms = written(tiny_llama_folder, tmp_path, decode="int8")
    assert (forms.decode, forms.head, forms.reports) == (None, None, ())
    assert not (tmp_path / DECODE_NAME).exists()
    with pytest.raises(UsageError, match="Unknown decode form 'fast': there are int8, weight-only"):
        written(tiny_llama_folder, tmp_path, decode="fast")


def test_switched_off_forms_are_not_written(tiny_llama_folder, tmp_path):
    forms = written(tiny_llama_folder, tmp_path, without=("weight-only-decode", "split-head"))
    assert (forms.decode, forms.head) == (None, None)
    assert reasons(forms) == {"decode-form": "switched off", "split-head": "switched off"}
    assert not (tmp_path / DECODE_NAME).exists()


def test_a_cache_that_is_not_shared_keeps_one_graph(tiny_llama_folder, tmp_path):
    forms = written(tiny_llama_folder, tmp_path, without=("group-query-attention",))
    assert (forms.decode, forms.head) == (None, None)
    assert "past and present are apart" in reasons(forms)["decode-form"]
    assert reasons(forms)["split-head"] == "there is no decode form to share it with"


def test_a_head_that_cannot_be_cut_says_why(tiny_llama_folder):
    model = portable(tiny_llama_folder, dtype="fp32")
    lower(model)
    head = next(node for node in model.graph if node.metadata_props.get("spikeexport.module") == "lm_head")
    head.metadata_props.pop("spikeexport.module")
    assert split_head(model) == "0 nodes compute lm_head, expected 1"
    assert model.graph.outputs[0].name == "logits"


def test_fused_residual_adds_keep_the_numbers(tiny_llama_folder, tmp_path):
    fused = open_pair(tiny_llama_folder, tmp_path / "fused", without=EXACT)
    apart = open_pair(tiny_llama_folder, tmp_path / "apart", without=(*EXACT, "skip-norm"))
    assert {report.name: report.applied for report in fused.reports}["skip-norm"] == 6
    ids = random_ids(1, 3)
    np.testing.assert_allclose(fused.lowered.prefill(ids)[0], apart.lowered.prefill(ids)[0], atol=5e-5, rtol=0)
