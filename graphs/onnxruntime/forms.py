"""From a lowered graph to the forms that run, over one weight file: prefill body, decode body and head."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from spikeexport.graphs.onnxruntime.group_query_attention import SEQLENS
from spikeexport.graphs.onnxruntime.lowering import DecodeForm, PassReport, run_passes
from spikeexport.graphs.onnxruntime.lowering_pass import Skip
from spikeexport.graphs.onnxruntime.split_head import SPLIT_HEAD, split_head
from spikeexport.graphs.onnxruntime.weight_only_decode import WeightOnlyDecode
from spikeexport.graphs.saving import data_name, externalise


@dataclass(frozen=True)
class Forms:
    """The graphs of one model; they share their initializers.

    Attributes:
        prefill: The body for prompts, or the whole model.
        decode: The body for single tokens, or None: `prefill` does for both.
        head: From `hidden` to `logits`, or None: the bodies compute logits.
        reports: What was done to get there.
    """

    prefill: ir.Model
    decode: ir.Model | None
    head: ir.Model | None
    reports: tuple[PassReport, ...]


def write_forms(
    model: ir.Model, path: Path, names: tuple[str, str], without: Collection[str] = (), decode: DecodeForm = "int8"
) -> Forms:
    """Writes a lowered model as its forms, the weights once.

    Args:
        model: A lowered graph; it becomes the prefill form.
        path: The prefill form's file; its external data holds the weights of all.
        names: File names of the decode form and of the head, beside it.
        without: `split-head` and passes of the decode form to leave out.
        decode: What it was lowered for; "weight-only" has a decode form of its own.
    """
    externalise(model, path.parent, data_name(path.name))
    if decode == "int8":
        ir.save(model, path)
        return Forms(model, None, None, ())
    step, step_reports = _decode(model, without)
    head, head_report = _head(model, step, SPLIT_HEAD in without)
    for form, name in ((model, path.name), (step, names[0]), (head, names[1])):
        if form is not None:
            ir.save(form, path.with_name(name))
    return Forms(model, step, head, (head_report, *step_reports))


DECODE_FORM = "decode-form"
"""Name of the report that says whether there is the decode form that was asked for, and why not."""

_NOT_SHARED = "past and present are apart: one graph does for all"


def _head(model: ir.Model, decode: ir.Model | None, off: bool) -> tuple[ir.Model | None, PassReport]:
    """Cuts the head off both bodies; a body that is alone keeps it, since each graph has threads of its own."""
    if off or decode is None:
        why = "switched off" if off else "there is no decode form to share it with"
        return None, PassReport(SPLIT_HEAD, 0, (Skip("model", why),))
    found = split_head(model)
    if isinstance(found, str):
        return None, PassReport(SPLIT_HEAD, 0, (Skip("model", found),))
    split_head(decode)
    return found, PassReport(SPLIT_HEAD, 1, ())


def _decode(model: ir.Model, without: Collection[str]) -> tuple[ir.Model | None, tuple[PassReport, ...]]:
    """Returns the weight-only decode form, or None where no linear would run otherwise than in the prefill form."""
    if all(value.name != SEQLENS for value in model.graph.inputs):
        return None, (PassReport(DECODE_FORM, 0, (Skip("model", _NOT_SHARED),)),)
    decode = model.clone()
    (report,) = run_passes(decode, (WeightOnlyDecode,), without)
    if not report.applied:
        return None, (PassReport(DECODE_FORM, 0, report.skips[:1] or (Skip("model", "no linear is W8A8"),)),)
    return decode, (PassReport(DECODE_FORM, 1, ()), report)
