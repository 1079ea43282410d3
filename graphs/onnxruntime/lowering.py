"""The ordered list of lowering passes, and running them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.graphs.onnxruntime.block_embedding import BlockEmbedding
from spikeexport.graphs.onnxruntime.float32 import CastToFloat32
from spikeexport.graphs.onnxruntime.group_query_attention import FuseGroupQueryAttention
from spikeexport.graphs.onnxruntime.integer_decode import MergeProducts, ScalesBehind
from spikeexport.graphs.onnxruntime.integer_linear import IntegerLinears
from spikeexport.graphs.onnxruntime.logit_positions import GatherLogitPositions
from spikeexport.graphs.onnxruntime.lowering_pass import LoweringPass, Skip
from spikeexport.graphs.onnxruntime.packed_qkv import PackQkv
from spikeexport.graphs.onnxruntime.rms_norm import FoldNormWeights, FuseSkipNorm, SimplifyRmsNorm
from spikeexport.graphs.onnxruntime.split_head import SPLIT_HEAD
from spikeexport.graphs.onnxruntime.weight_only_decode import NarrowWeightOnlyDecode, WeightOnlyDecode
from spikeexport.graphs.onnxruntime.weight_only_linear import WeightOnlyLinears

DecodeForm = Literal["mixed", "weight-only", "prefill"]
"""How single tokens run: wide products in W8A8 and the others weight-only, all weight-only, or as prompts do."""

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
)
"""What turns a portable graph into ONNX Runtime's, in order."""

DECODE_LOWERING: dict[DecodeForm, tuple[type[LoweringPass], ...]] = {
    "mixed": (MergeProducts, NarrowWeightOnlyDecode, ScalesBehind),
    "weight-only": (WeightOnlyDecode,),
    "prefill": (),
}
"""What turns a lowered graph into each decode form, in order; a form in which none of it applies is not kept."""

DECODE_MORE: tuple[type[LoweringPass], ...] = (FuseSkipNorm,)
"""What every decode form has besides."""

PASS_NAMES = (
    *(step.name for step in LOWERING),
    SPLIT_HEAD,
    *(step.name for steps in DECODE_LOWERING.values() for step in steps),
    *(step.name for step in DECODE_MORE),
)
"""What can be switched off, in order: the passes, the cut in front of the head, the passes of the decode form."""


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


def lower(model: ir.Model, without: Collection[str] = ()) -> tuple[PassReport, ...]:
    """Lowers `model` in place.

    Args:
        model: A portable graph; its weights stay lazy.
        without: Names of passes to leave out; the graph stays right and gets slower.

    Raises:
        UsageError: `without` names an unknown pass.
    """
    unknown = sorted(set(without) - set(PASS_NAMES))
    if unknown:
        raise UsageError(f"Unknown lowering pass {unknown[0]!r}: there are {', '.join(PASS_NAMES)}.")
    return run_passes(model, LOWERING, without)


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
