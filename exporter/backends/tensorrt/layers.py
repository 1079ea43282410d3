"""The layers of a built engine as plain values, whichever way TensorRT told them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikeexport.calibration.foundation.errors import BackendError

DTYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
    "uint8": "uint8",
}
"""TensorRT's words for element types (inspector and log, all versions) -> ours."""

DTYPE_BYTES = {"fp32": 4, "int32": 4, "int64": 8, "fp16": 2, "bf16": 2, "int8": 1, "uint8": 1, "fp8": 1, "bool": 1}

_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\x1e|\[ONNX Layer: |$))")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_SUBGRAPH = re.compile(r"_(myl\d+)_\d+$")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a kernel reads or writes.

    Attributes:
        name: Its name in the engine.
        dtype: Element type in our words, or "" where TensorRT does not say.
        dims: Dimensions; -1 is dynamic.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class EngineLayer:
    """One kernel, or one step of the engine that is no kernel.

    Attributes:
        name: Its name in the engine.
        kind: TensorRT's LayerType, such as "gemm", "kgen", "CaskGemmMatrixMultiply" or "Reformat".
        inputs: Activations that it reads.
        constants: Weights that it reads, where TensorRT lists them.
        outputs: What it writes.
        tactic: Name of the kernel.
        onnx_nodes: Names of the ONNX nodes that went into it, as far as TensorRT says.
        profile: Index of the optimisation profile that it belongs to.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]
    profile: int = 0


def layer_from_fields(fields: Mapping[str, Any]) -> EngineLayer:
    """Makes a layer from the inspector's fields (those of TensorRT 10 and of 11; the log uses the same words).

    Raises:
        BackendError: A field that every version writes is missing.
    """
    try:
        name, kind = str(fields["Name"]), str(fields["LayerType"])
    except (KeyError, TypeError):
        raise BackendError(f"An engine layer has no Name or LayerType, found {str(fields)[:120]!r}.") from None
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=_tensors(fields.get("Inputs", ())),
        constants=(*_tensors(fields.get("Constants", ())), *_weights(fields.get("Weights"))),
        outputs=_tensors(fields.get("Outputs", ())),
        tactic=str(fields.get("TacticName", "")),
        onnx_nodes=tuple(dict.fromkeys(_ONNX_NODE.findall(str(fields.get("Metadata", ""))))),
    )


def _tensors(items: Sequence[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(str(item.get("Name", "")), _dtype(item), tuple(int(size) for size in item.get("Dimensions", ())))
        for item in items
    )


def _weights(weights: Any) -> tuple[EngineTensor, ...]:
    """Returns the `Weights` field that TensorRT 10 gives for layers outside its graph compiler."""
    if not isinstance(weights, Mapping):
        return ()
    return (
        EngineTensor("Weights", DTYPES.get(str(weights.get("Type", "")).lower(), ""), (int(weights.get("Count", 0)),)),
    )


def _dtype(item: Mapping[str, Any]) -> str:
    """Reads `Datatype` (11) or `Format/Datatype` (10: one word, or a phrase such as "Row major Int8 format")."""
    words = str(item.get("Datatype") or item.get("DataType") or item.get("Format/Datatype") or "").lower().split()
    return next((DTYPES[word] for word in words if word in DTYPES), "")


def assign_profiles(layers: Sequence[EngineLayer]) -> tuple[EngineLayer, ...]:
    """Returns the layers with their optimisation profile.

    The name of a profile's layer, or of a tensor in it, ends in " [profile 1]"; kernels that the graph compiler made
    carry only the number of their subgraph, which belongs to one profile.

    Args:
        layers: The layers of all profiles, in TensorRT's order.
    """
    marks = [_profile_mark(layer) for layer in layers]
    groups = [_subgraph(layer) for layer in layers]
    by_group: dict[str, int] = {}
    for group, mark in zip(groups, marks, strict=True):
        by_group[group] = max(by_group.get(group, 0), mark)
    return tuple(
        replace(layer, profile=by_group[group] if group else mark)
        for layer, group, mark in zip(layers, groups, marks, strict=True)
    )


def _subgraph(layer: EngineLayer) -> str:
    found = _SUBGRAPH.search(layer.name)
    return found.group(1) if found else ""


def _profile_mark(layer: EngineLayer) -> int:
    names = (layer.name, *(tensor.name for tensor in (*layer.inputs, *layer.outputs, *layer.constants)))
    return max((int(number) for name in names for number in _PROFILE.findall(name)), default=0)
