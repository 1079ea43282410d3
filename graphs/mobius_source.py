"""The unquantised decoder graph, built by mobius-onnx from a checkpoint's configuration; weights stay lazy."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError, one_line
from spikeexport.calibration.foundation.progress import say
from spikeexport.graphs.families import correct_module, corrected_config, corrected_weights
from spikeexport.graphs.weights import LazyWeight, ReadFloat32

if TYPE_CHECKING:
    import torch
    from spikeexport.calibration.checkpoint import Checkpoint

_TASK = "text-generation"
_PROVIDER = "onnx-standard"
_IGNORED_WEIGHTS = ("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq", "masked_bias", "attn.bias")


def known_architectures() -> list[str]:
    """Returns the `model_type`s that mobius-onnx builds as plain text decoders."""
    from mobius import registry

    return [name for name in registry.architectures() if _task_of(name) == _TASK]


def build_decoder(checkpoint: Checkpoint, dtype: ir.DataType) -> ir.Model:
    """Builds the decoder in standard ONNX operators.

    Args:
        checkpoint: Configuration and weights; weights are read through `read_tensor` when the graph is saved.
        dtype: FLOAT, FLOAT16 or BFLOAT16.

    Returns:
        A model with MatMul(x, Transpose(weight)), RMSNormalization, RotaryEmbedding and Attention with past and
        present; weights are `LazyWeight`s under the names that mobius gives them.

    Raises:
        GraphError: The architecture is unknown, or weights and graph do not match.
    """
    config = checkpoint.config
    with _mobius_messages():
        module, architecture = _mobius_module(config, dtype)
        from mobius import build_from_module

        package = build_from_module(module, architecture, _TASK, execution_provider=_PROVIDER)
        model = package["model"]
        state = {name: checkpoint.read_tensor(name) for name in checkpoint.tensor_names()}
        state = corrected_weights(module.preprocess_weights(state), config)
    _assign_weights(model.graph, state, dtype, checkpoint.name)
    model.graph.name = checkpoint.name
    return model


def _task_of(model_type: str) -> str:
    from mobius import registry

    registration = registry.get_registration(model_type)
    return registration.task or getattr(registration.module_class, "default_task", _TASK)


def _mobius_module(config: Any, dtype: ir.DataType) -> tuple[Any, Any]:
    from mobius import registry

    model_type = str(config.model_type)
    if model_type not in registry or _task_of(model_type) != _TASK:
        raise GraphError(
            f"The architecture {model_type!r} is not known as a text decoder; known: "
            f"{', '.join(known_architectures())}."
        )
    module_class = registry.get(model_type)
    config_class = registry.get_config_class(model_type) or module_class.config_class
    architecture = config_class.from_transformers(config)
    architecture = corrected_config(dataclasses.replace(architecture, dtype=dtype), config)
    module = module_class(architecture)
    correct_module(module, architecture, config)
    return module, architecture


def _assign_weights(graph: ir.Graph, state: dict[str, torch.Tensor], dtype: ir.DataType, where: str) -> None:
    missing = []
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            continue
        tensor = state.get(name)
        if tensor is None:
            missing.append(name)
            continue
        expected = list(value.shape.numpy()) if value.shape is not None else list(tensor.shape)
        if expected != list(tensor.shape):
            raise GraphError(f"{where}: {name} has shape {list(tensor.shape)}, the graph expects {expected}.")
        value.const_value = LazyWeight(name, _reader(tensor), expected, value.dtype or dtype)
    if missing:
        raise GraphError(
            f"{where}: {len(missing)} weights of the graph are not in the checkpoint, first {missing[0]}: the "
            "configuration and the weights do not belong together."
        )
    _refuse_unused(graph, state, where)


def _refuse_unused(graph: ir.Graph, state: dict[str, torch.Tensor], where: str) -> None:
    tied_to = {tensor.data_ptr() for name, tensor in state.items() if name in graph.initializers}
    unused = [
        name
        for name, tensor in state.items()
        if name not in graph.initializers and tensor.data_ptr() not in tied_to and not name.endswith(_IGNORED_WEIGHTS)
    ]
    if unused:
        raise GraphError(
            f"{where}: {len(unused)} weights of the checkpoint have no place in the graph that mobius-onnx builds, "
            f"first {unused[0]}: this variant of the architecture is not supported."
        )


def _reader(tensor: torch.Tensor) -> ReadFloat32:
    def read() -> np.ndarray:
        import torch

        return tensor.detach().to(torch.float32).numpy()

    return read


class _SayHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"mobius-onnx: {one_line(record.getMessage())}", level=1)


@contextlib.contextmanager
def _mobius_messages() -> Iterator[None]:
    """Sends what mobius and onnx_ir log to our own details, so that stderr stays ours."""
    loggers = [logging.getLogger(name) for name in ("mobius", "onnx_ir", "onnxscript", "onnx_shape_inference")]
    before = [(logger.propagate, logger.level) for logger in loggers]
    handler = _SayHandler()
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate, _ = propagate, level
