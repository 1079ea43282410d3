"""A prefix that some search proposes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrefixCandidate:
    """Token ids in order, BOS included where it has a place, and the search that found them."""

    ids: tuple[int, ...]
    method: str
