"""What a correction of mobius-onnx's decoder is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ConfigFix = Callable[[Any, Any], Any]
ModuleFix = Callable[[Any, Any, Any], None]
WeightsFix = Callable[[dict[str, Any], Any], dict[str, Any]]


@dataclass(frozen=True)
class Correction:
    """One deviation from mobius's decoder, at the points where it can be made.

    Attributes:
        config: (architecture, Hugging Face configuration) -> architecture, before the module is made.
        module: Changes mobius's module, given (module, architecture, Hugging Face configuration), before its graph is
            built.
        weights: (name -> tensor, Hugging Face configuration) -> the same, behind mobius's own renaming.
    """

    config: ConfigFix | None = None
    module: ModuleFix | None = None
    weights: WeightsFix | None = None
