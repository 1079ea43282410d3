"""What the planner was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.calibration.records.plan import ExcludedPrecision
from spikeexport.calibration.smoothing.solve import Smoothing

SAMPLES = 32
SEQLEN = 512
HELD_OUT = 8
"""Windows kept aside: nothing is fitted on them, choices are checked on them."""

HELD_OUT_TOKENS = 256
"""Tokens of each of them that are used."""


def held_out_windows(samples: int) -> int:
    """Returns how many windows are kept aside beside `samples` for fitting."""
    return max(1, min(HELD_OUT, samples // 4))


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
        qfem: "auto", "off" or the paper's alpha.
        qfep: "auto", "off", a text, or "ids:1,2,3".
        smooth: "auto", "off", "folds[:A]", "smoothquant[:A]" or "swiglu".
        exclude: Glob patterns of linears that stay unquantised.
        excluded_precision: How they are stored and computed.
        weights: "int8"; "fp" needs no plan.
        max_excluded: Largest share of the decoder's weights that "auto" may exclude.
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
    max_excluded: float = 0.05
    seed: int = 0

    @property
    def alpha(self) -> float | None:
        """The paper's threshold, or None for "auto" and "off".

        Raises:
            UsageError: `qfem` is neither a word nor a positive number.
        """
        if self.qfem in ("auto", "off"):
            return None
        try:
            alpha = float(self.qfem)
        except ValueError:
            alpha = float("nan")
        if not alpha > 0:
            raise UsageError(f"--qfem {self.qfem}: expected auto, off, or a ratio above 0 such as 20.")
        return alpha

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
    "auto": Smoothing("folds", ALL_FOLDS, DEFAULT_ALPHA),
    "folds": Smoothing("folds", ALL_FOLDS, DEFAULT_ALPHA),
    "smoothquant": Smoothing("smoothquant", frozenset({"norm"}), 0.5, center=False),
    "swiglu": Smoothing("swiglu", frozenset({"up_down"}), 1.0, power_of_two=True),
}
"""The one table of smoothing methods (OutlierTune needs a shift as well; see `--help`)."""


def _with_alpha(method: Smoothing, text: str, whole: str) -> Smoothing:
    try:
        alpha = float(text)
    except ValueError:
        alpha = float("nan")
    if not 0 <= alpha <= 1:
        raise UsageError(f"--smooth {whole}: the strength is a number from 0 to 1, found {text!r}.")
    return Smoothing(method.name, method.kinds, alpha, method.center, method.power_of_two)
