"""Reading the outputs of a PyTorch model's modules while it runs, and stopping when they are all there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from spikeexport.runners.torch_runner import TorchRunner


class _AllSeenError(Exception):
    """Ends a forward pass whose rest nobody reads."""


def module_outputs(runner: TorchRunner, modules: Sequence[str], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Runs token ids int64 [B, S] and returns module path -> output float32 [B, S, width].

    The runner's own prefix is fed in front and left out of the outputs.
    """
    found: dict[str, np.ndarray] = {}
    skip = len(runner.prefix_ids)

    def keep(module: str) -> Any:
        def hook(layer: Any, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            found[module] = tensor[:, skip:].float().cpu().numpy()
            if len(found) == len(modules):
                raise _AllSeenError

        return hook

    layers = dict(runner.model.named_modules())
    handles = [layers[module].register_forward_hook(keep(module)) for module in modules]
    try:
        runner.prefill(ids, last_only=True)
    except _AllSeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
