"""Which architectures can be opened: those that both PyTorch's side and the graph builder know."""

from __future__ import annotations

from functools import cache

from spikeexport.calibration.foundation.errors import CheckpointError


@cache
def known_architectures() -> tuple[str, ...]:
    """Returns the `model_type`s of text decoders that transformers can load and mobius can build, sorted."""
    from mobius import registry
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(
        name
        for name in registry.architectures()
        if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and _is_text_decoder(name)
    )


def require_known(model_type: str | None, where: str) -> None:
    """Refuses a `model_type` that cannot be exported.

    Raises:
        CheckpointError: The architecture is unknown; the message lists the known ones.
    """
    if model_type not in known_architectures():
        raise CheckpointError(
            f"{where}: unknown architecture (model_type {model_type!r}); known: {', '.join(known_architectures())}."
        )


def _is_text_decoder(model_type: str) -> bool:
    from mobius import registry

    registration = registry.get_registration(model_type)
    return (registration.task or registration.module_class.default_task) == "text-generation"
