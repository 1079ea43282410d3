"""The portable decoder: mobius's graph after the ordered list of passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError, PlanError
from spikeexport.calibration.records.plan import Plan, PlanTensors
from spikeexport.graphs.families.windows import attention_windows
from spikeexport.graphs.mobius_source import build_decoder
from spikeexport.graphs.passes.fold_smoothing import FoldSmoothing
from spikeexport.graphs.passes.insert_activation_qdq import InsertActivationQdq
from spikeexport.graphs.passes.keep_excluded import KeepExcluded
from spikeexport.graphs.passes.linears import decoder_matmuls
from spikeexport.graphs.passes.name_linears import NameLinears
from spikeexport.graphs.passes.quantize_kv_cache import QuantizeKvCache
from spikeexport.graphs.passes.quantize_lm_head import QuantizeLmHead
from spikeexport.graphs.passes.quantize_weights import QuantizeWeights
from spikeexport.graphs.passes.rotate_inputs import RotateInputs
from spikeexport.graphs.passes.shift_inputs import ShiftInputs
from spikeexport.graphs.passes.shift_positions import ShiftPositions
from spikeexport.graphs.passes.split_attention import PrefixKeyValues, SplitAttention
from spikeexport.graphs.passes.stamp_metadata import StampMetadata

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint

Dtype = Literal["fp16", "bf16", "fp32"]
DTYPES: dict[str, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "fp32": ir.DataType.FLOAT,
}
OPSET = 23
"""The oldest opset with Attention, RMSNormalization and RotaryEmbedding, and the widest read."""


def build_unquantised(
    checkpoint: Checkpoint, plan: Plan, tensors: PlanTensors, prefix_kv: PrefixKeyValues, dtype: Dtype
) -> ir.Model:
    """Builds the decoder with names, folds, open KV cache and prefix, and without quantisation.

    Args:
        checkpoint: The model.
        plan: Its folds and prefix are applied.
        tensors: The plan's vectors.
        prefix_kv: Per layer (key, value) float32 [1, kv_heads, P, head_dim] of the folded model, or nothing.
        dtype: Floating-point type of the graph.

    Raises:
        GraphError: The architecture is unknown, or plan and graph do not match.
    """
    model = build_decoder(checkpoint, DTYPES[dtype])
    length = prefix_kv[0][0].shape[2] if prefix_kv else 0
    _run(
        model,
        NameLinears(),
        FoldSmoothing(plan.folds, tensors, _head_dim(model.graph)),
        SplitAttention(prefix_kv, attention_windows(checkpoint.config)),
        ShiftPositions(length),
    )
    model.opset_imports[""] = OPSET
    return model


def quantise(
    model: ir.Model, plan: Plan, lm_head: Literal["fp", "int8"] = "fp", tensors: PlanTensors | None = None
) -> ir.Model:
    """Quantises the graph of `build_unquantised` in place as the plan says, and stamps it.

    Args:
        model: The graph.
        plan: What was decided.
        lm_head: "int8" stores the output head as INT8 weights.
        tensors: The plan's vectors; shifts, GPTQ's codes and an INT8 KV cache are there.

    Raises:
        GraphError: Plan and graph do not match.
        PlanError: A decoder linear is in no site and in no exclusion, or a scale is not usable.
    """
    linears = tuple(decoder_matmuls(model.graph))
    passes: list[ir.passes.InPlacePass] = []
    if plan.weights == "int8":
        _require_complete(plan, linears)
        rounded = tensors if plan.rounding == "gptq" else None
        passes = [
            RotateInputs(plan.sites, tensors or {}),
            ShiftInputs(plan.sites, tensors or {}, plan.int8_weights, rounded),
            InsertActivationQdq(plan.sites),
            QuantizeWeights(plan.int8_weights, rounded),
            KeepExcluded(plan.excluded),
        ]
    if plan.kv_cache is not None:
        passes.append(QuantizeKvCache(tensors or {}))
    if lm_head == "int8":
        passes.append(QuantizeLmHead())
    _run(model, *passes, StampMetadata(plan, linears))
    return model


def build_portable(
    checkpoint: Checkpoint,
    plan: Plan,
    tensors: PlanTensors,
    prefix_kv: PrefixKeyValues = (),
    dtype: Dtype = "fp16",
    lm_head: Literal["fp", "int8"] = "fp",
) -> ir.Model:
    """Builds the portable decoder; arguments and errors as for `build_unquantised` and `quantise`."""
    return quantise(build_unquantised(checkpoint, plan, tensors, prefix_kv, dtype), plan, lm_head, tensors)


def decoder_linears(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Returns the module paths of all decoder linears, in graph order.

    Raises:
        GraphError: The architecture is unknown.
    """
    model = build_decoder(checkpoint, ir.DataType.FLOAT)
    _run(model, NameLinears())
    return tuple(decoder_matmuls(model.graph))


def _run(model: ir.Model, *passes: ir.passes.InPlacePass) -> None:
    for step in passes:
        try:
            step(model)
        except (ir.passes.PreconditionError, ir.passes.PostconditionError) as error:
            raise GraphError(f"{type(step).__name__}: {error}") from error


def _head_dim(graph: ir.Graph) -> int:
    cache = next(value for value in graph.inputs if str(value.name).endswith(".key"))
    return int(cache.shape[3])  # type: ignore[index,arg-type]


def _require_complete(plan: Plan, linears: tuple[str, ...]) -> None:
    planned = set(plan.quantized_linears) | set(plan.excluded_linears)
    forgotten = [linear for linear in linears if linear not in planned]
    if forgotten:
        raise PlanError(
            f"The plan says nothing about {len(forgotten)} of {len(linears)} linears, first {forgotten[0]}: "
            "make the plan again for this model."
        )
