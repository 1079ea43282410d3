"""A MODEL run as it is: PyTorch in FP32 through transformers, the reference of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spikeexport.calibration.cache_argument import with_cache
from spikeexport.calibration.checkpoint import Checkpoint, bos_id, load_model, open_checkpoint
from spikeexport.runners.base import CausalRunner


@dataclass(frozen=True)
class TorchCache:
    """What transformers needs to go on: its key/value cache and the mask of the columns in it (int64 [B, past])."""

    past: Any
    mask: torch.Tensor


class TorchRunner(CausalRunner):
    """Runs a transformers model, optionally behind a prefix that it feeds itself.

    Attributes:
        checkpoint: Where it comes from.
        model: The transformers model, in evaluation mode; hooks may be put on it.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any | None = None, *, prefix_ids: tuple[int, ...] = ()) -> None:
        """Wraps `model`, or loads the checkpoint's in FP32.

        Args:
            checkpoint: Where tokenizer, configuration and (without `model`) weights come from.
            model: A loaded transformers model.
            prefix_ids: Tokens to put in front of every sequence, in place of BOS.
        """
        self.checkpoint = checkpoint
        self.model = model if model is not None else load_model(checkpoint)
        self.name = checkpoint.name
        self.tokenizer = checkpoint.tokenizer()
        self.prefix_ids = tuple(prefix_ids)
        self.bos_id = None if prefix_ids else bos_id(checkpoint)
        self.eos_ids = _eos_ids(checkpoint.generation_settings(), self.tokenizer)
        text_config = checkpoint.config.get_text_config()
        self.max_positions = int(getattr(text_config, "max_position_embeddings", 1 << 30)) - len(prefix_ids)
        self.vocab_size = int(text_config.vocab_size)
        self._device = next(self.model.parameters()).device
        self.prefix_logits = self._logits_behind_prefix() if prefix_ids else None

    def behind(self, prefix_ids: tuple[int, ...]) -> TorchRunner:
        """Returns a runner of the same loaded model that feeds `prefix_ids` in place of BOS."""
        return TorchRunner(self.checkpoint, self.model, prefix_ids=prefix_ids)

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, TorchCache]:
        """Runs sequences from the start; see `CausalRunner.prefill`."""
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        prefix = np.tile(np.asarray(self.prefix_ids, dtype=np.int64), (len(ids), 1))
        ids = np.concatenate([prefix, ids], axis=1)
        full_mask = torch.from_numpy(np.concatenate([np.ones_like(prefix), mask], axis=1))
        positions = (full_mask.cumsum(-1) - 1).clamp(min=0)
        past = self._new_cache()
        logits = self._forward(ids, full_mask, positions, past, last_only)
        behind_prefix = logits if last_only else logits[:, prefix.shape[1] :]
        return behind_prefix, TorchCache(past, full_mask)

    def decode(self, ids: np.ndarray, cache: TorchCache) -> tuple[np.ndarray, TorchCache]:
        """Runs more tokens behind the cache; see `CausalRunner.decode`."""
        new = torch.ones(ids.shape, dtype=torch.int64)
        mask = torch.cat([cache.mask, new], dim=1)
        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :]
        return self._forward(ids, mask, positions, cache.past, False), TorchCache(cache.past, mask)

    def close(self) -> None:
        """Drops the model."""
        self.model = None

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def _forward(
        self, ids: np.ndarray, mask: torch.Tensor, positions: torch.Tensor, past: Any, last_only: bool
    ) -> np.ndarray:
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(np.ascontiguousarray(ids)).to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                **with_cache(self.model, past),
                use_cache=True,
                logits_to_keep=1 if last_only else 0,
            )
        return output.logits.float().cpu().numpy()

    def _logits_behind_prefix(self) -> np.ndarray:
        empty = np.zeros((1, 0), dtype=np.int64)
        logits, _ = self.prefill(empty, last_only=True)
        return logits[0, -1]


def open_torch_runner(model: str, *, prefix_ids: tuple[int, ...] = (), trust_remote_code: bool = False) -> TorchRunner:
    """Opens a MODEL as a runner.

    Raises:
        CheckpointError: The checkpoint is missing, unreadable or of an unknown architecture.
    """
    return TorchRunner(open_checkpoint(model, trust_remote_code=trust_remote_code), prefix_ids=prefix_ids)


def _eos_ids(settings: dict, tokenizer: Any) -> tuple[int, ...]:
    found = settings.get("eos_token_id", tokenizer.eos_token_id)
    if found is None:
        return ()
    return tuple(int(token) for token in found) if isinstance(found, (list, tuple)) else (int(found),)
