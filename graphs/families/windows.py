"""How far back each layer's attention looks."""

from __future__ import annotations

from typing import Any


def attention_windows(hf_config: Any) -> tuple[int | None, ...]:
    """Returns per decoder layer how many tokens a query sees, itself counted, or None for all.

    Hugging Face's configurations say which layers slide in `layer_types`; those without it slide everywhere or nowhere.
    """
    config = hf_config.get_text_config()
    window = getattr(config, "sliding_window", None) or None
    kinds = getattr(config, "layer_types", None)
    if window is None or not kinds:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
