"""Runs a graph with lazy weights in ONNX Runtime, holding the weights of one stretch of it at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError, one_line
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.runners.ort_session import import_onnxruntime

Arrays = dict[str, np.ndarray]

_LAYER = re.compile(r"(?:^prefix|\.layers)\.(\d+)[./]")
_NO_LAYER = -1
_SEGMENT_BYTES = 256 << 20
_CONSTANT_BYTES = 4096


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: In graph order.
        layer: Index of the decoder layer that they belong to, or -1.
        weights: Large initializers that they read.
        constants: Small ones.
        inputs: Names of values that they read and that earlier segments or the caller provide.
        outputs: Names of values that they make and that later segments or the caller read.
    """

    nodes: tuple[ir.Node, ...]
    layer: int
    weights: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_into_segments(graph: ir.Graph, limit_bytes: int = _SEGMENT_BYTES) -> list[Segment]:
    """Cuts a graph where a decoder layer begins or ends, and where a stretch's weights would exceed `limit_bytes`."""
    stretches: list[tuple[int, list[ir.Node]]] = [(_NO_LAYER, [])]
    held: set[str] = set()
    size = 0
    for node in graph:
        found = _LAYER.search(str(node.name))
        layer = int(found.group(1)) if found else _NO_LAYER
        new = {value.name: value for value in _initializers([node]) if value.name not in held}
        added = sum(value.const_value.nbytes for value in new.values() if value.const_value is not None)
        if layer != stretches[-1][0] or (size and size + added > limit_bytes):
            stretches.append((layer, []))
            held, size = set(), 0
        stretches[-1][1].append(node)
        held |= {str(name) for name in new}
        size += added
    return [_segment(graph, layer, nodes) for layer, nodes in stretches if nodes]


class StreamedGraph:
    """One graph, run stretch by stretch.

    Every stretch is loaded once and run for all requests before the next, so that each weight is computed once and the
    memory needed does not depend on the number of layers.
    """

    def __init__(self, model: ir.Model, limit_bytes: int = _SEGMENT_BYTES) -> None:
        """Takes a model whose initializers may be lazy."""
        self._model = model
        self.segments = cut_into_segments(model.graph, limit_bytes)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[Segment, list[Arrays]]]:
        """Runs all requests in step.

        Args:
            requests: Each gives the values of the graph's inputs, and which earlier request's outputs feed its others.

        Yields:
            After each segment: the segment, and per request the values that are known then. The mappings are live:
            values that nothing reads any more are dropped after the next step.

        Raises:
            GraphError: ONNX Runtime refuses a part of the graph.
            BackendError: ONNX Runtime is not installed.
        """
        wanted = {str(value.name) for value in self._model.graph.outputs}
        known: list[Arrays] = [dict(request.inputs) for request in requests]
        with progress_bar("Comparing with PyTorch", len(self.segments)) as advance:
            for index, segment in enumerate(self.segments):
                self._run_segment(segment, requests, known)
                yield segment, known
                later = {name for rest in self.segments[index + 1 :] for name in rest.inputs}
                for values, request in zip(known, requests, strict=True):
                    for name in [name for name in values if name not in later | wanted | set(request.inputs)]:
                        del values[name]
                advance()

    def _run_segment(self, segment: Segment, requests: Sequence[Request], known: list[Arrays]) -> None:
        weights = {str(value.name): _array(value) for value in segment.weights}
        session = None
        for request, values in zip(requests, known, strict=True):
            feeds = {name: request.value(name, values, known) for name in segment.inputs} | weights
            if session is None:
                session = self._session(segment, feeds)
            values.update(zip(segment.outputs, session.run(list(segment.outputs), feeds), strict=True))

    def _session(self, segment: Segment, feeds: Mapping[str, np.ndarray]) -> Any:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Weights are inputs here: nothing is folded, packed or copied, and a run's buffers go back at once.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        proto = _segment_proto(segment, self._model, feeds)
        try:
            return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception types share no base class.
            raise GraphError(
                f"ONNX Runtime refuses the nodes from {segment.nodes[0].name} to {segment.nodes[-1].name}: "
                f"{one_line(error)}."
            ) from error


@dataclass(frozen=True)
class Request:
    """One call of the graph.

    Attributes:
        inputs: Values of graph inputs by name.
        past_from: Index of the earlier request whose `present.*` are this one's `past_key_values.*`, or None.
    """

    inputs: Arrays
    past_from: int | None = None

    def value(self, name: str, values: Arrays, known: list[Arrays]) -> np.ndarray:
        """Returns the value of `name` for this request, whose known values are `values`."""
        if name not in values and self.past_from is not None and name.startswith("past_key_values."):
            return known[self.past_from][name.replace("past_key_values.", "present.")]
        return values[name]


def _segment(graph: ir.Graph, layer: int, nodes: list[ir.Node]) -> Segment:
    inside = set(nodes)
    graph_outputs = set(graph.outputs)
    tensors = _initializers(nodes)
    inputs = {
        str(value.name): None
        for node in nodes
        for value in node.inputs
        if value is not None and not value.is_initializer() and value.producer() not in inside
    }
    outputs = [
        str(value.name)
        for node in nodes
        for value in node.outputs
        if value in graph_outputs or any(reader not in inside for reader, _ in value.uses())
    ]
    large = [value for value in tensors if value.const_value is not None and value.const_value.nbytes > _CONSTANT_BYTES]
    small = [value for value in tensors if value not in large]
    return Segment(tuple(nodes), layer, tuple(large), tuple(small), tuple(inputs), tuple(outputs))


def _initializers(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    found = {value: None for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    return list(found)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.ascontiguousarray(value.const_value.numpy())


def _segment_proto(segment: Segment, model: ir.Model, feeds: Mapping[str, np.ndarray]) -> bytes:
    import onnx
    from onnx import helper

    graph = helper.make_graph(
        [ir.serde.serialize_node(node) for node in segment.nodes],
        "segment",
        inputs=[
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in feeds.items()
        ],
        outputs=[onnx.ValueInfoProto(name=name) for name in segment.outputs],
        initializer=[onnx.numpy_helper.from_array(_array(value), str(value.name)) for value in segment.constants],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version).SerializeToString()
