"""The one table of names: what a decoder linear's own name says about the part it plays.

Which linears share an input and which norm feeds them is found by running the model (see `sites.py`); only what
cannot be seen from the outside, such as which of two factors passes through the activation, is said here.
"""

from __future__ import annotations

from typing import Literal

Role = Literal["query", "key", "value", "attention_output", "gate", "up", "down", "qkv", "gate_up", "router"]

ROLES: dict[str, Role] = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention_output",
    "out_proj": "attention_output",
    "dense": "attention_output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "qkv_proj": "qkv",
    "gate_up_proj": "gate_up",
    "gate": "router",
    "router": "router",
    "shared_expert_gate": "router",
}


def is_router(module: str) -> bool:
    """Whether a module decides which experts run, or how much: it is neither quantised nor counted as a linear."""
    return role_of(module) == "router"


def role_of(linear: str) -> Role | None:
    """Returns the role of a linear from the last part of its module path, or None when the table lacks it."""
    return ROLES.get(linear.rsplit(".", 1)[-1])
