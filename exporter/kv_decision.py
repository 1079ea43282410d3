"""Whether the KV cache is stored as INT8, and with which scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.records.plan import KvCachePlan, Plan, PlanTensors

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint

KvStorage = Literal["fp", "int8"]


def refuse_other_kv(plan: Plan, kv: KvStorage | None) -> None:
    """A recipe says how the cache is stored: refuses a wish for something else beside it.

    Raises:
        UsageError: `kv` is another storage than the recipe's.
    """
    stored = storage_of(plan)
    if kv is not None and kv != stored:
        raise UsageError(
            f"The KV cache of --recipe is {stored}, so that --kv {kv} contradicts it: export without --recipe."
        )


def storage_of(plan: Plan) -> KvStorage:
    """Returns how a plan stores the KV cache."""
    return "int8" if plan.kv_cache is not None else "fp"


def add_int8_kv(
    checkpoint: Checkpoint, plan: Plan, tensors: PlanTensors, options: PlanOptions
) -> tuple[Plan, PlanTensors]:
    """Measures the scales of an INT8 KV cache on the calibration text, behind the plan's prefix or BOS.

    Returns:
        The plan with them, and its tensors.

    Raises:
        CalibrationError: The text or the caches cannot be used.
    """
    from spikeexport.calibration.checkpoint import bos_id, load_model
    from spikeexport.calibration.forward import Lead
    from spikeexport.calibration.kv_scales import measure_kv_scales
    from spikeexport.calibration.plan_windows import plan_windows

    model = load_model(checkpoint)
    windows = plan_windows(checkpoint, model, options)
    lead = Lead(prefix=plan.prefix.ids) if plan.prefix else Lead(bos=bos_id(checkpoint))
    scales = measure_kv_scales(model, windows.fit, lead, plan.folds, tensors)
    kv_cache = KvCachePlan(layers=len(scales) // 2, calibration=windows.info)
    decisions = {**plan.decisions, "kv cache": "int8, one static scale per head and channel"}
    return plan.model_copy(update={"kv_cache": kv_cache, "decisions": decisions}), {**tensors, **scales}
