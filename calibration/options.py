"""What the planner was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spikeexport.calibration.defaults import MAX_EXCLUDED
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.records.plan import ExcludedPrecision
from spikeexport.calibration.scales import ScaleRule, scale_rule
from spikeexport.calibration.smoothing.solve import Smoothing

SAMPLES = 64
SEQLEN = 512
HELD_OUT = 8
"""Windows kept aside: nothing is fitted on them, choices are checked on them."""

HELD_OUT_TOKENS = 256
"""Tokens of each of them that are used."""


ALL_FOLDS = frozenset({"norm", "up_down", "v_o"})
DEFAULT_ALPHA = 0.85


@dataclass(frozen=True)
class PlanOptions:
    """Wishes of the user; names and values are those of `spikeexport export`.

    Attributes:
        profile: A profile of the same model whose ratios take the place of a profiling pass.
        calibration: TEXTs; the maximum over all of them sets the scales.
        samples: Calibration windows, `HELD_OUT` more are kept aside; None = `SAMPLES`.
        seqlen: Tokens per window; None = `SEQLEN`.
        qfem: "auto", "off", the paper's alpha, "first-last:N" or the path of a published list.
        qfep: "auto", "off", a text, or "ids:1,2,3".
        smooth: "auto[:A]", "off", "rotate[:A]", "shift[:A]", "folds[:A]", "smoothquant[:A]", "outliertune" or "swiglu".
        exclude: Glob patterns of linears that stay unquantised.
        excluded_precision: How they are stored and computed.
        weights: "int8"; "fp" needs no plan.
        max_excluded: Largest share of the decoder's weights that "auto" may exclude.
        rounding: "auto" (what measures better), "nearest" or "gptq".
        scales: "auto", "absmax", "percentile[:P]" or "mse".
        seed: Of sampling.
    """

    profile: Path | None = None
    calibration: tuple[str, ...] = ("self",)
    samples: int | None = None
    seqlen: int | None = None
    qfem: str = "auto"
    qfep: str = "auto"
    smooth: str = "auto"
    exclude: tuple[str, ...] = ()
    excluded_precision: ExcludedPrecision = "w8a16"
    weights: Literal["int8", "fp"] = "int8"
    max_excluded: float = MAX_EXCLUDED
    rounding: Literal["auto", "nearest", "gptq"] = "auto"
    scales: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_excluded <= 1:
            raise UsageError(f"--max-excluded {self.max_excluded:g}: expected a share from 0 to 1, such as 0.05.")

    @property
    def alpha(self) -> float | None:
        """The paper's threshold, or None for "auto" and "off".

        Raises:
            UsageError: `qfem` is neither a word nor a positive number.
        """
        if self.qfem in ("auto", "off") or self.first_last is not None or self.published is not None:
            return None
        try:
            alpha = float(self.qfem)
        except ValueError:
            alpha = float("nan")
        if not alpha > 0:
            raise UsageError(
                f"--qfem {self.qfem}: expected auto, off, a ratio above 0 such as 20, first-last:N, or a .json "
                "file with a published list."
            )
        return alpha

    @property
    def first_last(self) -> int | None:
        """N of "first-last:N", or None.

        Raises:
            UsageError: N is not a number above 0.
        """
        name, _, count = self.qfem.partition(":")
        if name != "first-last":
            return None
        if not count.isdecimal() or int(count) == 0:
            raise UsageError(f"--qfem {self.qfem}: expected a number of layers above 0, such as first-last:3.")
        return int(count)

    @property
    def published(self) -> Path | None:
        """The file of a published list, or None."""
        return Path(self.qfem) if self.qfem.endswith(".json") else None

    @property
    def scale_rule(self) -> ScaleRule | None:
        """How input scales are chosen, or None for "auto".

        Raises:
            UsageError: The method is not known, or its percentile is not between 50 and 100.
        """
        return None if self.scales == "auto" else scale_rule(self.scales)

    @property
    def sweeps_vocabulary(self) -> bool:
        """Whether the ranges of the first layers take in every token of the vocabulary; published methods do not."""
        return self.smooth.partition(":")[0] in ("auto", "rotate", "shift")

    @property
    def smoothing(self) -> Smoothing | None:
        """The smoothing method, or None for "off".

        Raises:
            UsageError: `smooth` is not known, or its strength is not between 0 and 1.
        """
        name, _, strength = self.smooth.partition(":")
        if name == "off":
            return None
        if name not in _METHODS:
            raise UsageError(f"--smooth {self.smooth}: expected auto, off or one of {', '.join(sorted(_METHODS))}.")
        method = _METHODS[name]
        return method if not strength else _with_alpha(method, strength, self.smooth)


_METHODS: dict[str, Smoothing] = {
    "auto": Smoothing("folds, rotation and shift", ALL_FOLDS, DEFAULT_ALPHA, shift="down", rotate="down"),
    "rotate": Smoothing("folds, rotation and shift of all inputs", ALL_FOLDS, DEFAULT_ALPHA, shift="all", rotate="all"),
    "shift": Smoothing("folds and shift", ALL_FOLDS, DEFAULT_ALPHA, shift="down"),
    "folds": Smoothing("folds", ALL_FOLDS, DEFAULT_ALPHA),
    "smoothquant": Smoothing("smoothquant", frozenset({"norm"}), 0.5, center=False),
    "outliertune": Smoothing("outliertune", ALL_FOLDS, 1.0, shift="all"),
    "swiglu": Smoothing("swiglu", frozenset({"up_down"}), 1.0, power_of_two=True),
}
"""The one table of smoothing methods."""


def _with_alpha(method: Smoothing, text: str, whole: str) -> Smoothing:
    try:
        alpha = float(text)
    except ValueError:
        alpha = float("nan")
    if not 0 <= alpha <= 1:
        raise UsageError(f"--smooth {whole}: the strength is a number from 0 to 1, found {text!r}.")
    return replace(method, alpha=alpha)
