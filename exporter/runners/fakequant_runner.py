"""MODEL@RECIPE: a recipe's INT8 numbers computed in floating point inside the PyTorch model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeexport.calibration.checkpoint import Checkpoint, open_checkpoint
from spikeexport.calibration.forward import KeyValues
from spikeexport.calibration.planned import planned
from spikeexport.calibration.records.plan import Plan, PlanTensors
from spikeexport.calibration.structure.sites import discover
from spikeexport.runners.torch_runner import TorchCache, TorchRunner


class FakeQuantRunner(TorchRunner):
    """Folds, scales, exclusions and the unquantised prefix cache of a plan, as an engine would round them.

    Attributes:
        plan: What it follows.
        fold_tensors: The vectors that the plan's folds refer to.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan, tensors: PlanTensors) -> None:
        """Loads the model and changes it as the plan says.

        Raises:
            PlanError: The plan was made for another model.
        """
        super().__init__(checkpoint, prefix_ids=plan.prefix.ids if plan.prefix else ())
        self.plan, self.fold_tensors = plan, tensors
        self.name = f"{checkpoint.name} (fake-quantised)"
        self._quantized = contextlib.ExitStack()
        inside = planned(self.model, discover(self.model), plan, tensors)
        self._key_values: KeyValues | None = self._quantized.enter_context(inside)

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, TorchCache]:
        """Runs sequences from the start, behind the prefix's unquantised cache; see `CausalRunner.prefill`."""
        if not getattr(self, "_key_values", None):
            return super().prefill(ids, attention_mask, last_only=last_only)
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        depth = len(self.prefix_ids)
        full = torch.from_numpy(np.concatenate([np.ones((len(ids), depth), np.int64), mask], axis=1))
        positions = (full.cumsum(-1) - 1).clamp(min=0)[:, depth:]
        past = self._prefix_cache(len(ids))
        return self._forward(ids, full, positions, past, last_only), TorchCache(past, full)

    def close(self) -> None:
        """Ends the quantisation and drops the model."""
        self._quantized.close()
        super().close()

    def _prefix_cache(self, batch: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key, value) in enumerate(self._key_values or ()):
            cache.update(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), layer)
        return cache


def open_fakequant_runner(model: str, recipe: Path) -> FakeQuantRunner:
    """Opens a MODEL as a recipe of `export --save-recipe` quantises it.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        PlanError: The recipe cannot be read or belongs to another model.
    """
    from spikeexport.decide import read_recipe

    checkpoint = open_checkpoint(model)
    return FakeQuantRunner(checkpoint, *read_recipe(checkpoint, recipe))
