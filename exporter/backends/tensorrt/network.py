"""From an .onnx file to a strongly typed network, with the parser's complaints turned into messages that name nodes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from spikeexport.backends.tensorrt.logger import BuildLog
from spikeexport.calibration.foundation.errors import BackendError, one_line

_SHOWN_ERRORS = 3


def create_network(module: ModuleType, builder: Any) -> Any:
    """Creates an empty strongly typed network: the types of the graph, explicit Q/DQ included, are obeyed.

    TensorRT 11 has no other kind and RTX no other either; the flag exists wherever it has a meaning.
    """
    flags = module.NetworkDefinitionCreationFlag
    strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    return builder.create_network(strongly_typed)


def parse_onnx(module: ModuleType, network: Any, onnx: Path, log: BuildLog, title: str) -> Any:
    """Parses `onnx` (external data beside it) into `network` and returns the parser, which must outlive the build.

    Raises:
        BackendError: The parser refuses; the message names each node with its operator and the reason.
    """
    parser = module.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(onnx)):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    shown = "; ".join(_describe(error) for error in errors[:_SHOWN_ERRORS]) or log.first_error()
    more = f" and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
    raise BackendError(
        f"{title} cannot parse {onnx.name}: {shown}{more}. `spikeexport inspect {onnx.name}` lists what to change."
    )


def _describe(error: Any) -> str:
    """Says one parser error as `operator node: reason`; older bindings do not name the node."""
    node = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    reason = one_line(error.desc(), 240)
    return f"{operator} node {node or error.node()}: {reason}" if operator or node else reason


def input_shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """Returns the network's inputs with their shapes, -1 for dynamic axes."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    return {tensor.name: tuple(tensor.shape) for tensor in inputs}
