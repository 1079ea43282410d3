"""The checkpoint in PyTorch, computing in float32 without holding float32 weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from spikeexport.calibration.checkpoint import Checkpoint
    from torch import nn
    from transformers import PreTrainedModel


def load_reference(checkpoint: Checkpoint) -> PreTrainedModel:
    """Loads the checkpoint so that it computes in float32 while its weights stay mapped in the checkpoint's dtype.

    Each module's own parameters are cast when it runs and dropped behind it, so that memory does not grow with the
    number of layers.

    Raises:
        CheckpointError: The weights are damaged or do not fit the configuration.
    """
    import torch
    from spikeexport.calibration.checkpoint import load_model

    stored = stored_dtype(checkpoint)
    model = load_model(checkpoint, stored)
    if stored != torch.float32:
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                _cast_while_running(module)
    return model


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Returns the floating-point dtype that most of the checkpoint's elements have."""
    import torch

    sizes: dict[torch.dtype, int] = {}
    for name in checkpoint.tensor_names():
        tensor = checkpoint.read_tensor(name)
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)


def _cast_while_running(module: nn.Module) -> None:
    from torch import nn

    if type(module) is nn.Embedding:
        module.register_forward_hook(lambda module, inputs, output: output.float())
        return
    stored: dict[str, torch.Tensor] = {}

    def widen(module: nn.Module, inputs: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            stored[name] = parameter.data
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, inputs: Any, output: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = stored.pop(name)

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(restore, always_call=True)
