"""What a model of transformers calls the argument for its key/value cache."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Returns the keyword arguments that give `cache` to `model`: `cache`, or `past_key_values` before 5.24."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}
