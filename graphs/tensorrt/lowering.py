"""The ordered list of passes that turn a portable graph into the form that TensorRT compiles to the fewest kernels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.tensorrt.decompose_attention import DecomposeAttention
from spikeexport.graphs.tensorrt.deinterleave_rotary import DeinterleaveRotary
from spikeexport.graphs.tensorrt.join_qkv import JoinQkv
from spikeexport.graphs.tensorrt.split_by_head import SplitByHead

JOINED_DATA = "lowered.data"
"""File that holds the weights which a lowering made; all others stay in the portable file's data."""

_INLINE_BYTES = 1024


def lower(model: ir.Model) -> ir.Model:
    """Lowers a portable graph in place and returns it; a second time changes nothing.

    Raises:
        GraphError: A pass refuses the graph.
    """
    for step in (JoinQkv(), SplitByHead(), DecomposeAttention(), DeinterleaveRotary(), RemoveUnusedNodesPass()):
        try:
            step(model)
        except (ir.passes.PreconditionError, ir.passes.PostconditionError) as error:
            raise GraphError(f"{type(step).__name__}: {error}") from error
    return model


def write_lowered(source: Path, folder: Path) -> Path:
    """Writes the lowered graph of the portable file `source` into `folder`, with links to the data it shares.

    Only the weights that the lowering made are written again.

    Args:
        source: A file that `export` wrote.
        folder: An existing folder.

    Returns:
        The written file.

    Raises:
        GraphError: A pass refuses the graph.
        OSError: The file system refused.
    """
    model = lower(ir.load(source))
    made = [value for value in model.graph.initializers.values() if _is_large_and_new(value)]
    tensors = [value.const_value for value in made if value.const_value is not None]
    for value, tensor in zip(
        made, ir.external_data.convert_tensors_to_external(tensors, folder, JOINED_DATA), strict=True
    ):
        value.const_value = tensor
    for location in _shared_data(model) - {JOINED_DATA}:
        _share(source.parent / location, folder / location)
    target = folder / source.name
    ir.save(model, target)
    return target


def _share(source: Path, target: Path) -> None:
    """Makes `source` appear as `target`: a hard link (parsers refuse symbolic ones), or a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _is_large_and_new(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > _INLINE_BYTES


def _shared_data(model: ir.Model) -> set[str]:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
