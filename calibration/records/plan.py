"""What is decided before a graph is written: prefix, folds, scales, exclusions. A plan saved to a file is a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.foundation.records import Artifact, Record
from spikeexport.calibration.records.model_id import CalibrationInfo, ModelId

ExcludedPrecision = Literal["w8a16", "fp16", "bf16", "fp32", "fp8"]
FoldKind = Literal["norm", "up_down", "v_o"]
Rounding = Literal["nearest", "gptq"]


class Prefix(Record):
    """Tokens whose KV cache is baked in front of every sequence (QFeP), BOS included where it has a place.

    Attributes:
        ids: Token ids in order.
        text: The same, decoded with special tokens.
    """

    ids: tuple[int, ...]
    text: str


class InputSite(Record):
    """One tensor that feeds one or more quantised linears, with its static per-tensor scale.

    Attributes:
        name: Module path of the first linear that reads the tensor.
        linears: Module paths of all linears that read it (q/k/v, gate/up), in the order of the module tree.
        scale: Real value of one INT8 step: x is quantised to clip(round(x / scale), -128, 127).
        ratio: The paper's spike ratio behind the prefix (None when it was not measured).
        shift: Key of the float32 vector z [channels] in the plan's tensors that is taken off x before it is quantised
            and given back as z @ W in the linears' bias (OutlierTune), or None.
        rotation: Key of the orthogonal float32 matrix R [block, block] in the plan's tensors by which each block of
            x's channels is multiplied (before the shift), and R^T the rows of the weights, or None.
    """

    name: str
    linears: tuple[str, ...]
    scale: float
    ratio: float | None = None
    shift: str | None = None
    rotation: str | None = None


class Exclusion(Record):
    """A linear whose input stays unquantised.

    Attributes:
        linear: Module path.
        precision: How its weight is stored and computed: "w8a16" is INT8 per-channel weights, dequantised.
        why: One phrase for the reports, such as "ratio 2148 >= 20".
        scale: Of the input in FP8 E4M3, absmax / 448 ("fp8" only).
        ratio: The paper's spike ratio of its input behind the prefix, where it was measured.
    """

    linear: str
    precision: ExcludedPrecision
    why: str
    scale: float | None = None
    ratio: float | None = None


class Fold(Record):
    """A per-channel rescaling that leaves the function unchanged: producer / s, consumers' input columns * s.

    Attributes:
        kind: "norm" (norm weight / s), "up_down" (rows of up_proj / s) or "v_o" (rows of v_proj / s; s has one value
            per KV channel and is repeated over the query heads of its group for o_proj's columns).
        producer: Module path of the norm or linear that is divided (its bias too, where it has one).
        consumers: Module paths of the linears whose input columns are multiplied.
        scales: Key of the float32 vector s [producer's output channels] in the plan's tensors.
        rows: First row and the one behind the last that are divided, where the producer is a fused linear (the up part
            of gate_up_proj, the value part of qkv_proj); s has one value per such row. None: all rows.
    """

    kind: FoldKind
    producer: str
    consumers: tuple[str, ...]
    scales: str
    rows: tuple[int, int] | None = None


class TradeOff(Record):
    """What a number of exclusions gives, measured on held-out calibration windows by fake quantisation.

    Attributes:
        sites: Input sites left unquantised.
        linears: Linears that read them.
        weight_share: Their share of the decoder linears' weights, 0 to 1.
        kl: Mean KL divergence to the floating-point model behind the same lead, in nats.
        perplexity: Of the quantised model.
    """

    sites: int
    linears: int
    weight_share: float
    kl: float
    perplexity: float


class KvCachePlan(Record):
    """An INT8 KV cache with static scales per head and channel, kept in the plan's tensors (`kv_scale_name`).

    Attributes:
        layers: Number of decoder layers.
        calibration: Text whose caches gave the scales.
    """

    layers: int
    calibration: CalibrationInfo


def kv_scale_name(layer: int, kind: str) -> str:
    """Returns the key of a layer's scales float32 [kv_heads, head_dim] in the tensors; `kind` is "key" or "value"."""
    return f"kv.{layer}.{kind}"


class Plan(Artifact):
    """Everything that export needs beside the checkpoint.

    Attributes:
        sites: The quantised inputs with their scales; a linear in no site and in no exclusion is a mistake.
        excluded: Linears that stay out of `sites`.
        alpha: The ratio threshold that QFeM used, or None.
        weights: "int8" (per output channel, symmetric) or "fp" (nothing is quantised).
        trade_off: Excluded share against quality, as far as it was measured.
        kv_cache: How the KV cache is stored; None = in the graph's floating-point type.
        rounding: "nearest" (codes follow from the weights) or "gptq" (codes and scales lie in the plan's tensors).
        largest_activation: Largest |x| of hidden states and linears' inputs in calibration; None: not measured.
        decisions: Method and figures of each choice, for reports: plain words, never read by code.
    """

    KIND: ClassVar[str] = "plan"

    model: ModelId
    calibration: CalibrationInfo | None
    prefix: Prefix | None
    folds: tuple[Fold, ...]
    sites: tuple[InputSite, ...]
    excluded: tuple[Exclusion, ...]
    alpha: float | None
    weights: Literal["int8", "fp"]
    decisions: dict[str, str]
    trade_off: tuple[TradeOff, ...] = ()
    largest_activation: float | None = None
    kv_cache: KvCachePlan | None = None
    rounding: Rounding = "nearest"

    @property
    def quantized_linears(self) -> tuple[str, ...]:
        """Module paths of all linears whose input and weight are INT8."""
        return tuple(linear for site in self.sites for linear in site.linears) if self.weights == "int8" else ()

    @property
    def excluded_linears(self) -> tuple[str, ...]:
        """Module paths of all linears left unquantised by choice."""
        return tuple(exclusion.linear for exclusion in self.excluded)

    @property
    def int8_weights(self) -> tuple[str, ...]:
        """Module paths of all linears whose weight is INT8, with a quantised input or without ("w8a16")."""
        weight_only = tuple(exclusion.linear for exclusion in self.excluded if exclusion.precision == "w8a16")
        return (*self.quantized_linears, *weight_only) if self.weights == "int8" else ()


PlanTensors = dict[str, np.ndarray]
"""What a plan refers to: name -> float32 array, int8 for codes (`codes_name`)."""


def codes_name(linear: str) -> str:
    """Returns the key of a linear's INT8 codes int8 [in, out] in the tensors of a plan with rounding "gptq"."""
    return f"{linear}.weight_q"


def code_scales_name(linear: str) -> str:
    """Returns the key of the scales float32 [out] that belong to `codes_name`."""
    return f"{linear}.weight_scale"


def save_plan(plan: Plan, tensors: PlanTensors, path: Path) -> None:
    """Writes a plan as `path` (JSON) with its tensors in a .safetensors file of the same stem beside it.

    Raises:
        SpikeExportError: The file system refused.
    """
    from safetensors.numpy import save_file
    from spikeexport.calibration.foundation.files import staged_outputs

    tensor_path = path.with_suffix(".safetensors")
    targets = (tensor_path, path) if tensors else (path,)
    with staged_outputs(*targets) as staging:
        if tensors:
            save_file(dict(sorted(tensors.items())), staging / tensor_path.name)
        (staging / path.name).write_text(plan.to_json(), encoding="utf-8")


def load_plan(path: Path) -> tuple[Plan, PlanTensors]:
    """Reads what `save_plan` wrote.

    Raises:
        PlanError: A file is missing or malformed, or a fold's vector is absent, of another shape kind, not finite or
            not positive.
    """
    from spikeexport.calibration.records.plan_tensors import needs_tensors

    plan = Plan.load(path)
    if not needs_tensors(plan):
        return plan, {}
    return plan, _load_tensors(plan, path.with_suffix(".safetensors"))


def _load_tensors(plan: Plan, path: Path) -> PlanTensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from spikeexport.calibration.records.plan_tensors import check_tensors

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise PlanError(f"{path} is missing: the plan's scales are there; copy it beside the plan.") from None
    except (SafetensorError, OSError) as error:
        raise PlanError(f"{path} cannot be read ({error}): save the recipe again.") from error
    check_tensors(plan, tensors, str(path))
    return tensors
