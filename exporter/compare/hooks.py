"""Reading the inputs and outputs of a PyTorch model's modules while it runs, and stopping when they are all there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from spikeexport.runners.torch_runner import TorchRunner

T = TypeVar("T")


class _AllSeenError(Exception):
    """Ends a forward pass whose rest nobody reads."""


def module_outputs(runner: TorchRunner, modules: Sequence[str], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Runs token ids int64 [B, S] and returns module path -> output float32 [B, S, width].

    The runner's own prefix is fed in front and left out of the outputs.
    """
    return _watch(runner, modules, ids, lambda inputs, output: _array(output, ids))


def module_inputs(runner: TorchRunner, modules: Sequence[str], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Runs token ids int64 [B, S] and returns module path -> first input float32 [B, S, width], prefix left out."""
    return _watch(runner, modules, ids, lambda inputs, output: _array(inputs[0], ids))


def module_tensors(
    runner: TorchRunner, modules: Sequence[str], ids: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs token ids int64 [B, S] and returns module path -> (input, output), each float32 [B, S, width]."""
    return _watch(runner, modules, ids, lambda inputs, output: (_array(inputs[0], ids), _array(output, ids)))


def _array(tensor: Any, ids: np.ndarray) -> np.ndarray:
    tensor = tensor[0] if isinstance(tensor, tuple) else tensor
    if tensor.dim() != 3:
        # An expert that sees only the tokens routed to it: nothing tells which those are.
        return tensor.float().cpu().numpy()
    # A prefix that is fed as tokens comes first; one that is a cache is not there.
    return tensor[:, tensor.shape[1] - ids.shape[1] :].float().cpu().numpy()


def _watch(runner: TorchRunner, modules: Sequence[str], ids: np.ndarray, read: Callable[[Any, Any], T]) -> dict[str, T]:
    found: dict[str, T] = {}

    def keep(module: str) -> Any:
        def hook(layer: Any, inputs: Any, output: Any) -> None:
            found[module] = read(inputs, output)
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
