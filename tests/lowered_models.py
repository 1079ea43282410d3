"""Tiny portable graphs and their lowered forms, opened as runners, for the tests of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.records.plan import Plan, Prefix
from spikeexport.graphs.onnxruntime.forms import write_forms
from spikeexport.graphs.onnxruntime.lowering import DecodeForm, PassReport, lower
from spikeexport.graphs.portable import Dtype, build_unquantised, quantise
from spikeexport.graphs.saving import save_model
from spikeexport.runners.assets import Assets
from spikeexport.runners.engine_graphs import DECODE_NAME, HEAD_NAME
from spikeexport.runners.onnx_runner import OnnxRunner
from spikeexport.runners.ort_engine_runner import EngineSettings, OrtEngineRunner
from spikeexport.runners.ort_session import SessionSettings

from tests.constant_plan import constant_plan
from tests.tiny_models import VOCAB_SIZE, tiny_family

ONE_THREAD = SessionSettings(threads=1)
PREFIX_IDS = (5, 9, 1)


def random_prefix(checkpoint, seed: int = 7) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns made-up keys and values of a prefix of 3 tokens, float32 [1, kv_heads, 3, head_dim] per layer."""
    config, random = checkpoint.config, np.random.default_rng(seed)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, config.num_key_value_heads, len(PREFIX_IDS), dim)
    return [
        (random.normal(size=shape).astype(np.float32), random.normal(size=shape).astype(np.float32))
        for _ in range(config.num_hidden_layers)
    ]


def empty_plan(checkpoint) -> Plan:
    """Returns a plan that quantises nothing."""
    return Plan(
        model=checkpoint.model_id,
        calibration=None,
        prefix=None,
        folds=(),
        sites=(),
        excluded=(),
        alpha=None,
        weights="fp",
        decisions={},
    )


def portable(
    folder: Path,
    *,
    dtype: Dtype = "fp32",
    quantised: bool = True,
    prefix: bool = False,
    excluded: tuple[str, ...] = (),
    lm_head: str = "fp",
) -> ir.Model:
    """Builds the portable graph of the model in `folder`, with one made-up scale at every input."""
    checkpoint = open_checkpoint(folder)
    nothing = empty_plan(checkpoint)
    model = build_unquantised(checkpoint, nothing, {}, random_prefix(checkpoint) if prefix else (), dtype)
    baked = Prefix(ids=PREFIX_IDS, text="made up") if prefix else None
    plan = constant_plan(model, checkpoint, excluded=excluded, prefix=baked) if quantised else nothing
    return quantise(model, plan, lm_head)


@dataclass(frozen=True)
class Pair:
    """A portable graph and its lowered form, both running.

    Attributes:
        portable: The portable file as it is, Q/DQ in exact floating point.
        lowered: The lowered form.
        reports: What the passes did.
    """

    portable: OnnxRunner
    lowered: OrtEngineRunner
    reports: tuple[PassReport, ...]


def open_pair(
    folder: Path,
    work: Path,
    *,
    without: tuple[str, ...] = (),
    chunk: int = EngineSettings.chunk,
    decode: DecodeForm = "int8",
    **options,
) -> Pair:
    """Writes both forms of the model in `folder` into `work` and opens them; options as for `portable`."""
    work.mkdir(parents=True, exist_ok=True)
    ids = PREFIX_IDS if options.get("prefix") else ()
    save_model(portable(folder, **options), work / "portable.onnx")
    model = ir.load(work / "portable.onnx")
    prefix = tuple(
        value.const_value.numpy().astype(np.float32)
        for name, value in model.graph.initializers.items()
        if name.startswith("prefix.") and name.endswith((".key", ".value"))
    )
    reports = lower(model, without, decode)
    forms = write_forms(model, work / "lowered.onnx", (DECODE_NAME, HEAD_NAME), without, decode)
    return Pair(
        OnnxRunner(work / "portable.onnx", Assets(folder, ids), ONE_THREAD),
        OrtEngineRunner(work / "lowered.onnx", Assets(folder, ids), prefix, EngineSettings(ONE_THREAD, chunk)),
        (*reports, *forms.reports),
    )


def open_family_pair(family: str, work: Path, **options) -> Pair:
    """Writes a tiny model of `family` and opens both forms; options as for `open_pair`."""
    return open_pair(tiny_family(family, work / family), work, **options)


def random_ids(batch: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns int64 [batch, width] token ids without special ones."""
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, (batch, width)).astype(np.int64)
