"""The ordered list of lowering passes, and running them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.graphs.onnxruntime.block_embedding import BlockEmbedding
from spikeexport.graphs.onnxruntime.float32 import CastToFloat32
from spikeexport.graphs.onnxruntime.group_query_attention import FuseGroupQueryAttention
from spikeexport.graphs.onnxruntime.integer_linear import IntegerLinears
from spikeexport.graphs.onnxruntime.logit_positions import GatherLogitPositions
from spikeexport.graphs.onnxruntime.lowering_pass import LoweringPass, Skip
from spikeexport.graphs.onnxruntime.merged_products import MergeProducts, ScalesBehind
from spikeexport.graphs.onnxruntime.packed_qkv import PackQkv
from spikeexport.graphs.onnxruntime.rms_norm import FoldNormWeights, FuseSkipNorm, SimplifyRmsNorm
from spikeexport.graphs.onnxruntime.split_head import SPLIT_HEAD
from spikeexport.graphs.onnxruntime.weight_only_decode import WeightOnlyDecode
from spikeexport.graphs.onnxruntime.weight_only_linear import WeightOnlyLinears

DecodeForm = Literal["int8", "weight-only"]
"""How single tokens run: in W8A8 as prompts do, or with unquantised inputs in a graph of their own."""

LOWERING: tuple[type[LoweringPass], ...] = (
    CastToFloat32,
    IntegerLinears,
    WeightOnlyLinears,
    FuseGroupQueryAttention,
    PackQkv,
    GatherLogitPositions,
    BlockEmbedding,
    FoldNormWeights,
    SimplifyRmsNorm,
    FuseSkipNorm,
)
"""What turns a portable graph into ONNX Runtime's, in order."""

BOTH_PHASES: tuple[type[LoweringPass], ...] = (MergeProducts, ScalesBehind)
"""What follows where one graph runs prompts and single tokens."""

PASS_NAMES = (*(step.name for step in (*LOWERING, *BOTH_PHASES)), WeightOnlyDecode.name, SPLIT_HEAD)
"""What can be switched off, in order: the passes, that of the decode form, the cut in front of the head."""


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: The pass.
        applied: Places rewritten.
        skips: Places left in their slower form, with the reason.
    """

    name: str
    applied: int
    skips: tuple[Skip, ...]


def lower(model: ir.Model, without: Collection[str] = (), decode: DecodeForm = "int8") -> tuple[PassReport, ...]:
    """Lowers `model` in place.

    Args:
        model: A portable graph; its weights stay lazy.
        without: Names of passes to leave out; the graph stays right and gets slower.
        decode: How single tokens are to run.

    Raises:
        UsageError: `without` names an unknown pass, or `decode` an unknown form.
    """
    if decode not in get_args(DecodeForm):
        raise UsageError(f"Unknown decode form {decode!r}: there are {', '.join(get_args(DecodeForm))}.")
    unknown = sorted(set(without) - set(PASS_NAMES))
    if unknown:
        raise UsageError(f"Unknown lowering pass {unknown[0]!r}: there are {', '.join(PASS_NAMES)}.")
    return run_passes(model, (*LOWERING, *BOTH_PHASES) if decode == "int8" else LOWERING, without)


def run_passes(
    model: ir.Model, passes: Sequence[type[LoweringPass]], without: Collection[str] = ()
) -> tuple[PassReport, ...]:
    """Runs `passes` on `model` in place, those in `without` left out."""
    reports = []
    for step in passes:
        if step.name in without:
            reports.append(PassReport(step.name, 0, (Skip("model", "switched off"),)))
            continue
        lowering_pass = step()
        lowering_pass(model)
        reports.append(PassReport(step.name, lowering_pass.applied, tuple(lowering_pass.skips)))
    return tuple(reports)
