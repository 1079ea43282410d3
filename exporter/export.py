"""From a checkpoint to one portable .onnx: plan, graph, parity check, files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.options import MAX_EXCLUDED, PlanOptions
from spikeexport.calibration.records.plan import ExcludedPrecision, Plan, Prefix, save_plan
from spikeexport.decide import decide, read_recipe, refuse_beside_recipe
from spikeexport.kv_decision import KvStorage, add_int8_kv, refuse_other_kv, storage_of
from spikeexport.peak_memory import high_water_mark

if TYPE_CHECKING:
    from spikeexport.graphs.portable import Dtype
    from spikeexport.parity import Parity


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    Attributes:
        onnx: The file, or None after a dry run.
        linears: Number of decoder linears.
        plan: What was decided.
        dtype: Floating-point type of the graph.
        lm_head: "fp" or "int8".
        parity: How far the unquantised graph was from PyTorch, or None after a dry run.
        size_bytes: Of the .onnx and its data.
        seconds: Time taken, planning included.
        peak_rss_bytes: Largest resident set of this process (mapped files count); 0 where the system does not tell.
    """

    onnx: Path | None
    linears: int
    plan: Plan
    dtype: Dtype
    lm_head: Literal["fp", "int8"]
    parity: Parity | None
    size_bytes: int
    seconds: float
    peak_rss_bytes: int

    @property
    def prefix(self) -> Prefix | None:
        """The baked prefix."""
        return self.plan.prefix

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `export --json` prints."""
        plan = self.plan
        return {
            "onnx": str(self.onnx) if self.onnx else None,
            "model": plan.model.name,
            "linears": self.linears,
            "quantized": len(plan.quantized_linears),
            "excluded": list(plan.excluded_linears),
            "alpha": plan.alpha,
            "prefix": {"ids": list(plan.prefix.ids), "text": plan.prefix.text} if plan.prefix else None,
            "folds": len(plan.folds),
            "rounding": plan.rounding,
            "exclusions": [exclusion.model_dump(mode="json", exclude_none=True) for exclusion in plan.excluded],
            "trade_off": [row.model_dump(mode="json") for row in plan.trade_off],
            "decisions": plan.decisions,
            "weights": plan.weights,
            "lm_head": self.lm_head,
            "kv": storage_of(self.plan),
            "dtype": self.dtype,
            "parity": {"max_difference": self.parity.max_difference, "limit": self.parity.limit}
            if self.parity
            else None,
            "size_bytes": self.size_bytes,
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def export(
    model: str | Path,
    output: str | Path,
    *,
    profile: str | Path | None = None,
    calibration: Sequence[str] = ("self",),
    samples: int | None = None,
    seqlen: int | None = None,
    qfem: str | float = "auto",
    qfep: str = "auto",
    smooth: str = "auto",
    exclude: Sequence[str] = (),
    max_excluded: float = MAX_EXCLUDED,
    excluded_precision: ExcludedPrecision = "w8a16",
    rounding: Literal["auto", "nearest", "gptq"] = "auto",
    scales: str = "auto",
    weights: Literal["int8", "fp"] = "int8",
    lm_head: Literal["fp", "int8"] = "fp",
    kv: KvStorage | None = None,
    dtype: Dtype = "fp16",
    recipe: str | Path | None = None,
    save_recipe: str | Path | None = None,
    dry_run: bool = False,
    trust_remote_code: bool = False,
) -> ExportResult:
    """Quantises a model with QFeM and QFeP and writes one portable .onnx with Q/DQ.

    Beside `output` it writes `<output>.data` with the weights and `<stem>.assets/` with the tokenizer and settings.

    Args:
        model: A Hugging Face folder, a .gguf file or a hub id.
        output: The .onnx to write.
        profile: A profile of this model, which saves the profiling pass.
        calibration: Texts to calibrate on: files, dataset ids or "self".
        samples: Number of calibration windows.
        seqlen: Tokens per window.
        qfem: "auto", "off", the ratio from which on a linear stays unquantised, "first-last:N" (down_proj of the first
            and last N layers), or a .json file with a published list.
        qfep: "auto", "off", a text, or "ids:1,2,3".
        smooth: "auto", "off", "smoothquant[:A]", "outliertune" or "swiglu".
        exclude: Glob patterns of module paths that stay unquantised too.
        max_excluded: Largest share of the decoder's weights (0 to 1) that "auto" may leave unquantised.
        excluded_precision: How excluded linears are stored and computed.
        rounding: How weights are rounded: "nearest", "gptq", or "auto" for what measures better.
        scales: How input scales are chosen: "auto", "absmax", "percentile[:P]" or "mse".
        weights: "fp" writes the plain decoder: no INT8, no folds, and a prefix only where `qfep` names one.
        lm_head: "int8" stores the output head as INT8 weights.
        kv: "int8" stores the KV cache as INT8 with calibrated static scales; past and present are then int8.
        dtype: Floating-point type of the graph.
        recipe: A saved plan; takes the place of all decisions above.
        save_recipe: Where to save the plan.
        dry_run: Decides and reports, and writes no .onnx.
        trust_remote_code: Whether code that comes with the checkpoint may be run.

    Raises:
        SpikeExportError: Of the kind that fits; the message says what to do. Nothing is left under the final names.
    """
    from spikeexport.calibration.checkpoint import open_checkpoint
    from spikeexport.graphs.portable import decoder_linears
    from spikeexport.write_portable import write_portable

    start = time.perf_counter()
    output = _checked_output(Path(output))
    options = PlanOptions(
        profile=Path(profile) if profile is not None else None,
        calibration=tuple(calibration),
        samples=samples,
        seqlen=seqlen,
        qfem=str(qfem),
        qfep=qfep,
        smooth=smooth,
        exclude=tuple(exclude),
        max_excluded=max_excluded,
        excluded_precision=excluded_precision,
        rounding=rounding,
        scales=scales,
        weights=weights,
    )
    if recipe is not None:
        refuse_beside_recipe(options)
    checkpoint = open_checkpoint(model, trust_remote_code=trust_remote_code)
    plan, tensors = read_recipe(checkpoint, Path(recipe)) if recipe is not None else decide(checkpoint, options)
    if recipe is not None:
        refuse_other_kv(plan, kv)
    elif kv == "int8":
        plan, tensors = add_int8_kv(checkpoint, plan, tensors, options)
    if save_recipe is not None:
        save_plan(plan, tensors, Path(save_recipe))
    written = None if dry_run else write_portable(checkpoint, plan, tensors, output, dtype=dtype, lm_head=lm_head)
    return ExportResult(
        onnx=None if written is None else output,
        linears=len(decoder_linears(checkpoint)) if written is None else written.linears,
        plan=plan,
        dtype=dtype,
        lm_head=lm_head,
        parity=None if written is None else written.parity,
        size_bytes=0 if written is None else written.size_bytes,
        seconds=time.perf_counter() - start,
        peak_rss_bytes=high_water_mark() or 0,
    )


def _checked_output(output: Path) -> Path:
    if output.suffix != ".onnx":
        raise UsageError(f"-o {output}: the name has to end in .onnx.")
    if output.is_dir():
        raise UsageError(f"-o {output} is a folder: give the name of the .onnx file to write.")
    return output
