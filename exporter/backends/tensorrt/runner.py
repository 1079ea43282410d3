"""Runs a built engine on the GPU: prefill and decode contexts, KV cache on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spikeexport.backends.manifest import EngineManifest
from spikeexport.backends.tensorrt.flavor import Flavor
from spikeexport.backends.tensorrt.kv_cache import CacheEntry, DeviceKvCache, present_name
from spikeexport.backends.tensorrt.profiles import DECODE, PREFILL, Limits
from spikeexport.backends.tensorrt.runnable import require_runnable
from spikeexport.backends.tensorrt.session import EngineSession
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.runners.assets import Assets
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.prefix_logits import read_prefix_logits

if TYPE_CHECKING:
    import torch


@dataclass
class EngineCache:
    """The state behind the tokens seen so far; a run moves it on in place.

    Attributes:
        kv: Keys and values on the device.
        mask: int64 [B, tokens] on the device, 0 on padding.
    """

    kv: DeviceKvCache
    mask: torch.Tensor


def open_runner(flavor: Flavor, folder: Path, manifest: EngineManifest) -> EngineRunner:
    """Opens a built folder after checking that it can run here.

    Raises:
        BackendError: It cannot; the message says why.
    """
    require_runnable(flavor, folder, manifest)
    return EngineRunner(EngineSession(flavor, folder), folder, manifest)


class EngineRunner(CausalRunner):
    """A TensorRT or TensorRT-RTX engine behind the runners' interface."""

    def __init__(self, session: EngineSession, folder: Path, manifest: EngineManifest) -> None:
        """Takes over a loaded engine; `close` releases it."""
        self._session = session
        self._limits = Limits(int(str(manifest.target["max_batch"])), int(str(manifest.target["max_seq"])))
        self._entries = tuple(self._entry(name) for name in session.input_names if name.startswith("past_key_values."))
        self.assets = Assets(folder, manifest.prefix.ids if manifest.prefix else ())
        self.name = folder.name
        self.prefix_ids = self.assets.prefix_ids
        self.eos_ids = self.assets.eos_ids
        self.max_positions = self._limits.max_seq
        self.max_batch = self._limits.max_batch
        self.vocab_size = session.shape("logits")[-1]
        self.prefix_logits = read_prefix_logits(folder)

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The tokenizer that was written into the folder."""
        return self.assets.tokenizer

    @property
    def bos_id(self) -> int | None:  # type: ignore[override]
        """See `CausalRunner`."""
        return self.assets.bos_id

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, EngineCache]:
        """See `CausalRunner.prefill`."""
        import torch

        mask = attention_mask if attention_mask is not None else np.ones(ids.shape, np.int64)
        empty = torch.empty((ids.shape[0], 0), dtype=torch.int64, device=self._session.device)
        cache = EngineCache(DeviceKvCache(self._entries, ids.shape[0], self._session.device), empty)
        return self._run(PREFILL, ids, mask.astype(np.int64), cache, last_only)

    def decode(self, ids: np.ndarray, cache: EngineCache) -> tuple[np.ndarray, EngineCache]:
        """See `CausalRunner.decode`; several tokens at once go through the prefill profile."""
        profile = DECODE if ids.shape[1] == 1 else PREFILL
        return self._run(profile, ids, np.ones(ids.shape, np.int64), cache, last_only=False)

    def close(self) -> None:
        """See `CausalRunner.close`."""
        self._session.close()

    def _run(
        self, profile: int, ids: np.ndarray, new_mask: np.ndarray, cache: EngineCache, last_only: bool
    ) -> tuple[np.ndarray, EngineCache]:
        import torch

        batch, new = ids.shape
        self._check_size(batch, cache.kv.tokens + new)
        session = self._session
        with session.queue():
            mask = torch.cat([cache.mask, torch.from_numpy(new_mask).to(session.device)], dim=1)
            # A token's position is the number of real tokens before it; padding takes any valid one.
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:].contiguous()
            inputs = {
                "input_ids": torch.from_numpy(ids.astype(np.int64)).to(session.device),
                "attention_mask": mask,
                "position_ids": positions,
            }
            logits = torch.empty((batch, new, self.vocab_size), dtype=session.dtype("logits"), device=session.device)
            cache.kv.make_room(new)
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()} | dict(cache.kv.shapes())
            addresses = {name: tensor.data_ptr() for name, tensor in inputs.items()} | dict(cache.kv.addresses())
            session.run(profile, shapes, {**addresses, "logits": logits.data_ptr()})
            wanted = (logits[:, -1:] if last_only else logits).float().to("cpu")
        cache.kv.advance(new)
        return wanted.numpy(), EngineCache(cache.kv, mask)

    def _check_size(self, batch: int, tokens: int) -> None:
        if batch > self._limits.max_batch or tokens > self._limits.max_seq:
            raise BackendError(
                f"{self.name} was built for batches of {self._limits.max_batch} and {self._limits.max_seq} tokens; "
                f"{batch} x {tokens} were given: build it with a larger --max-batch or --max-seq."
            )

    def _entry(self, past: str) -> CacheEntry:
        _, heads, _, head_dim = self._session.shape(past)
        return CacheEntry(past, present_name(past), heads, head_dim, self._session.dtype(past))
