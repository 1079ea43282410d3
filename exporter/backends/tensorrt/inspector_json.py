"""Reads the engine inspector's JSON of TensorRT 10 and 11, whose fields differ.

Up to 10 the engine's inputs and outputs are a list of names (`Bindings`) and a tensor has `Format/Datatype`; from 11
on they are objects (`I/O Tensors`) and a tensor has `Format` and `Datatype` apart.
"""

from __future__ import annotations

import json

from spikeexport.backends.tensorrt.layers import EngineLayer, assign_profiles, layer_from_fields
from spikeexport.calibration.foundation.errors import BackendError, one_line


def read_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Returns the layers of an engine from `get_engine_information(LayerInformationFormat.JSON)`.

    Args:
        text: The JSON of an engine built with profiling verbosity DETAILED.

    Raises:
        BackendError: The text is not the inspector's, holds no layers, or names layers without describing them.
    """
    try:
        data = json.loads(text)
        layers = data["Layers"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BackendError(f"The engine inspector's answer cannot be read ({one_line(error)}).") from error
    if not isinstance(layers, list) or not layers:
        raise BackendError("The engine inspector lists no layers: the engine was built without profiling verbosity.")
    if isinstance(layers[0], str):
        raise BackendError(
            "The engine inspector gives only the names of layers: build with profiling verbosity DETAILED."
        )
    return assign_profiles([layer_from_fields(layer) for layer in layers])
