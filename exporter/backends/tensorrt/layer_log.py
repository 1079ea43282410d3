"""Reads the builder's VERBOSE message that lists an engine's layers (profiling verbosity DETAILED).

It is the only word on an engine built without a GPU, and no stable interface: nothing here guesses. A line looks like
`Name: a/MatMul_myl1_10, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,64], Datatype: Int8, ... }], ...,
Metadata: [ONNX Layer: a/MatMul][ONNX Layer: ...]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from spikeexport.backends.tensorrt.layers import EngineLayer, assign_profiles, layer_from_fields
from spikeexport.backends.tensorrt.profiles import PROFILE_NAMES
from spikeexport.calibration.foundation.errors import BackendError

HEADING = "Layers:"
_OPENING, _CLOSING = "[{(", "]})"


def read_layer_log(messages: Iterable[str], version: str) -> tuple[EngineLayer, ...]:
    """Returns the layers that the log lists, with their profiles.

    Args:
        messages: Log messages of one build.
        version: The builder's version, for the message.

    Raises:
        BackendError: No message lists layers, or a line is not in the known form.
    """
    text = next((message for message in messages if message.startswith(HEADING)), None)
    lines = [line for line in _layer_lines(text)] if text is not None else []
    if not lines:
        raise BackendError(
            f"The build log of TensorRT-RTX {version} lists no layers, so nothing can be said about what became INT8: "
            "install the version that this report was written for (pip install 'spikeexport[rtx]')."
        )
    layers = assign_profiles([layer_from_fields(_fields(line, version)) for line in lines])
    seen = {layer.profile for layer in layers}
    if seen != set(range(len(PROFILE_NAMES))):
        raise BackendError(
            f"The build log of TensorRT-RTX {version} lists layers of the profiles {sorted(seen)}, "
            f"{len(PROFILE_NAMES)} were built: the log has another form than the one that this was written for."
        )
    return layers


def _layer_lines(text: str) -> Iterator[str]:
    for line in text[len(HEADING) :].splitlines():
        if line.startswith("Name: "):
            yield line
        elif not line.strip():
            continue
        else:
            return


def _fields(line: str, version: str) -> dict[str, Any]:
    # The list of nodes is last, and node names may hold any character.
    head, found, metadata = line.partition(", Metadata: ")
    fields: dict[str, Any] = {}
    for part in split_top_level(head):
        key, colon, value = part.partition(": ")
        if colon:
            fields[key.strip()] = value
    if not found or "LayerType" not in fields:
        raise BackendError(f"A layer in the log of TensorRT-RTX {version} is not in the known form: {line[:160]!r}.")
    for key in ("Inputs", "Outputs", "Constants"):
        fields[key] = [_tensor_fields(item) for item in _items(fields.get(key, "[]"))]
    return {**fields, "Metadata": metadata}


def _items(text: str) -> list[str]:
    """Splits `[ { a }, { b }]` into the insides of its braces."""
    inside = text.strip().removeprefix("[").removesuffix("]").strip()
    return (
        [item.strip().removeprefix("{").removesuffix("}").strip() for item in split_top_level(inside)] if inside else []
    )


def _tensor_fields(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part in split_top_level(text):
        key, _, value = part.partition(": ")
        fields[key.strip()] = value.strip()
    dims = fields.get("Dimensions", "[]").strip("[]")
    return {**fields, "Dimensions": [int(size) for size in dims.split(",") if size]}


def split_top_level(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets, braces and parentheses."""
    parts: list[str] = []
    depth, start = 0, 0
    for index, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
