"""The one interface behind which every subject runs: prefill a batch of tokens, then decode behind its cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import Self

Cache: TypeAlias = Any
"""A runner's own state behind the tokens seen so far; opaque to callers, never shared between runners."""


class CausalRunner(ABC):
    """A causal language model that can be run.

    A runner is a context manager; leaving it calls `close`. Implementations set the attributes in `__init__`.

    Attributes:
        name: What the user called the subject, for reports.
        tokenizer: The subject's Hugging Face tokenizer.
        prefix_ids: Ids of the prefix baked into the subject (QFeP); callers never feed them. Empty without one.
        bos_id: Id to put before a text; None when the prefix stands in its place or the tokenizer has none.
        eos_ids: Ids that end a generation.
        max_positions: Tokens that fit behind the prefix: BOS, prompt and generated ones together.
        vocab_size: V, the last axis of the logits.
        max_batch: Largest B that the subject was built for; None = no limit.
        prefix_logits: float32 [V] behind the prefix alone (they predict the first token of a text); None without a
            prefix, or where the subject does not keep them.
    """

    name: str
    tokenizer: Any
    prefix_ids: tuple[int, ...]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    max_positions: int
    vocab_size: int
    max_batch: int | None = None
    prefix_logits: np.ndarray | None = None

    @abstractmethod
    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, Cache]:
        """Runs a batch of token sequences from the start.

        Args:
            ids: int64 [B, S]; BOS is the caller's business, the baked prefix is not.
            attention_mask: int64 [B, S], 0 where a sequence is padded on the left and 1 elsewhere; None = all ones.
            last_only: Whether only the logits behind the last column are wanted.

        Returns:
            Logits float32 [B, S, V] ([B, 1, V] with `last_only`; rows of padding hold arbitrary finite values), and
            the cache to decode behind.
        """

    @abstractmethod
    def decode(self, ids: np.ndarray, cache: Cache) -> tuple[np.ndarray, Cache]:
        """Runs more tokens behind a cache, which the call may reuse: only the returned one is valid afterwards.

        Args:
            ids: int64 [B, S'], none of them padding.
            cache: What the last `prefill` or `decode` on this runner returned.

        Returns:
            Logits float32 [B, S', V] and the new cache.
        """

    def close(self) -> None:  # noqa: B027 (nothing to release is the usual case)
        """Releases sessions, engines and memory; the runner cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
