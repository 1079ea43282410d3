"""Each linear of an .onnx by itself, on the input that the original's linear gets: nothing adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.compare.hooks import module_tensors
from spikeexport.compare.signal import SignalError
from spikeexport.compare.taps import Tap, chunk_taps, open_cut_session
from spikeexport.compare.unscale import Scales
from spikeexport.graphs.reading import PortableModel
from spikeexport.runners.torch_runner import TorchRunner

_CHUNK_BYTES = 128 * 2**20
_PASSED_THROUGH = ("Cast", "QuantizeLinear", "DequantizeLinear")


def linears_alone(
    portable: PortableModel, runner: TorchRunner, taps: Sequence[Tap], windows: np.ndarray, scales: Scales
) -> dict[str, SignalError]:
    """Feeds every linear the original's input and compares what it makes of it, a few linears in memory at a time.

    Args:
        portable: The candidate.
        runner: The original, behind the candidate's prefix.
        taps: The candidate's linears.
        windows: int64 [N, S] token ids as they are fed.
        scales: What the folds multiplied.

    Raises:
        GraphError: ONNX Runtime refuses the cut graph.
    """
    linears = [tap for tap in taps if tap.kind == "linear"]
    errors: dict[str, SignalError] = {}
    # An input is held beside its output, and is at most as wide again.
    chunks = list(chunk_taps(linears, 2 * windows.shape[1], _CHUNK_BYTES))
    with progress_bar("Error of each linear alone", len(chunks)) as advance:
        for chunk in chunks:
            errors.update(_chunk_alone(portable.path, runner, chunk, windows, scales))
            advance()
    return errors


def _chunk_alone(
    path: Path, runner: TorchRunner, chunk: Sequence[Tap], windows: np.ndarray, scales: Scales
) -> dict[str, SignalError]:
    errors: dict[str, SignalError] = {}
    session: _LinearSession | None = None
    for window in windows:
        seen = module_tensors(runner, [tap.module for tap in chunk], window[None])
        # An expert reads only the tokens routed to it: it cannot be fed like the others.
        expected = {module: pair for module, pair in seen.items() if pair[0].ndim == 3}
        if session is None:
            fed = [tap for tap in chunk if tap.module in expected]
            if not fed:
                return {}
            session, errors = _LinearSession(path, fed), {tap.module: SignalError() for tap in fed}
        inputs = {module: expected[module][0] / scales.inputs.get(module, np.float32(1)) for module in errors}
        for module, output in session.run(inputs).items():
            found = output.astype(np.float32) * scales.outputs.get(module, np.float32(1))
            errors[module].add(expected[module][1], found)
    return errors


class _LinearSession:
    """Linears of a portable .onnx with everything in front of their inputs cut off."""

    def __init__(self, path: Path, linears: Sequence[Tap]) -> None:
        model = ir.load(path)
        values = {str(value.name): value for node in model.graph for value in node.outputs}
        self._linears = list(linears)
        self._source: dict[str, str] = {}
        fed: dict[ir.Value, ir.Value] = {}
        for tap in linears:
            source = linear_source(values[tap.value])
            if source not in fed:
                fed[source] = ir.Value(name=f"fed.{len(fed)}", type=source.type, shape=source.shape)
            self._source[tap.module] = str(fed[source].name)
        model.graph.outputs.clear()
        model.graph.outputs.extend(values[tap.value] for tap in linears)
        for source, value in fed.items():
            for node, index in list(source.uses()):
                node.replace_input_with(index, value)
        RemoveUnusedNodesPass()(model)
        model.graph.inputs.clear()
        model.graph.inputs.extend(fed.values())
        half = {str(value.name) for value in fed.values() if value.dtype == ir.DataType.FLOAT16}
        self._dtypes = {str(v.name): np.float16 if str(v.name) in half else np.float32 for v in fed.values()}
        self._session = open_cut_session(path, ir.to_proto(model).SerializeToString(), linears[-1].module)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns module path -> output for inputs [B, S, in]."""
        feeds: dict[str, Any] = {}
        for module, name in self._source.items():
            feeds[name] = inputs[module].astype(self._dtypes[name])
        outputs = self._session.run([tap.value for tap in self._linears], feeds)
        return {tap.module: output for tap, output in zip(self._linears, outputs, strict=True)}


def linear_source(output: ir.Value) -> ir.Value:
    """Returns the tensor that a linear with this output reads, in front of rotation, shift and quantisation."""
    node = output.producer()
    while node is not None and node.op_type not in ("MatMul", "Gemm"):
        # In front of a bias's Add, and of a Cast behind a product in another type, comes what a node makes.
        made = (value.producer() for value in node.inputs if value is not None)
        node = next((producer for producer in made if producer is not None), None)
    value = node.inputs[0] if node is not None else None
    while value is not None and (producer := value.producer()) is not None and _prepares_input(producer):
        value = producer.inputs[0]
    if value is None:
        raise GraphError(f"{output.name} is not the output of a linear: export again.")
    return value


def _prepares_input(node: ir.Node) -> bool:
    # What `export` puts in front of a quantised input is named `<site>/input/<operator>`.
    return node.op_type in _PASSED_THROUGH or "/input/" in str(node.name)
