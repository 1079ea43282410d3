"""What a mixture's checkpoint calls its experts' linears, where transformers keeps them under other names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertNames:
    """Names of the parts of a mixture's block.

    Attributes:
        gate: The linear that passes through the activation.
        up: The linear that it is multiplied with.
        down: The linear that reads their product.
        block: What the checkpoint calls the block that transformers calls `mlp`.
        router: What it calls the linear that chooses the experts.
    """

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    block: str = "mlp"
    router: str = "gate"


EXPERT_NAMES: dict[str, ExpertNames] = {
    "mixtral": ExpertNames(gate="w1", up="w3", down="w2", block="block_sparse_moe"),
    "granitemoe": ExpertNames(block="block_sparse_moe", router="router"),
}
"""model_type -> names; the others use the defaults."""


def expert_names(model_type: str) -> ExpertNames:
    """Returns the names of a family's mixture."""
    return EXPERT_NAMES.get(model_type, ExpertNames())
