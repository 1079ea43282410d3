"""Applies a plan's folds to the weights: producer / s, consumers' input channels * s."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import Fold, PlanTensors
from spikeexport.graphs.weights import lazy_weight

_APPLIED_KEY = "spikeexport.folds"


class FoldSmoothing(ir.passes.InPlacePass):
    """Rescales weights lazily so that activations quantise better and the function stays the same.

    Weights are `<module>.weight_t` [in, out], norms `<module>.weight` [channels], biases `<module>.bias` [out].
    Which folds were applied is kept in the model's metadata, so that a second run changes nothing.
    """

    def __init__(self, folds: Sequence[Fold], tensors: PlanTensors, head_dim: int) -> None:
        """Takes the plan's folds, the vectors they name, and the width of one attention head (for v -> o folds)."""
        self._folds = folds
        self._tensors = tensors
        self._head_dim = head_dim

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            GraphError: A fold names a module that the graph lacks, or its vector has another length.
        """
        applied = json.loads(model.metadata_props.get(_APPLIED_KEY, "[]"))
        pending = [fold for fold in self._folds if fold.scales not in applied]
        for fold in pending:
            self._apply(model.graph, fold)
        if pending:
            model.metadata_props[_APPLIED_KEY] = json.dumps(applied + [fold.scales for fold in pending])
        return ir.passes.PassResult(model, modified=bool(pending))

    def _apply(self, graph: ir.Graph, fold: Fold) -> None:
        scales = self._tensors[fold.scales].astype(np.float32)
        if fold.kind == "norm":
            offset = norm_offset(_require(graph, f"{fold.producer}.weight"))
            _change(graph, f"{fold.producer}.weight", scales, lambda w, s: (w + offset) / s - offset, axis=-1)
        else:
            _change(graph, f"{fold.producer}.weight_t", scales, lambda w, s: w / s, axis=-1)
        if f"{fold.producer}.bias" in graph.initializers:
            _change(graph, f"{fold.producer}.bias", scales, lambda b, s: b / s, axis=-1)
        for consumer in fold.consumers:
            rows = lazy_weight(_require(graph, f"{consumer}.weight_t")).shape.numpy()[0]
            spread = self._over_query_heads(scales, rows) if fold.kind == "v_o" else scales
            _change(graph, f"{consumer}.weight_t", spread, lambda w, s: w * s[:, None], axis=0)

    def _over_query_heads(self, scales: np.ndarray, rows: int) -> np.ndarray:
        groups = rows // len(scales)
        return np.repeat(scales.reshape(-1, self._head_dim), groups, axis=0).reshape(-1)


def _require(graph: ir.Graph, name: str) -> ir.Value:
    value = graph.initializers.get(name)
    if value is None:
        raise GraphError(f"The plan folds a scale into {name}, which the graph does not have: make the plan again.")
    return value


def norm_offset(weight: ir.Value) -> np.float32:
    """Returns what the graph adds to a norm's weight before it multiplies (1 in Gemma's form, else 0)."""
    for reader, _ in weight.uses():
        if reader.op_type == "Add":
            other = next(value for value in reader.inputs if value is not weight)
            if other is not None and other.const_value is not None and other.const_value.size == 1:
                return np.float32(other.const_value.numpy().item())
    return np.float32(0)


def _change(
    graph: ir.Graph, name: str, scales: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray], axis: int
) -> None:
    value = _require(graph, name)
    weight = lazy_weight(value)
    if weight.shape.numpy()[axis] != len(scales):
        raise GraphError(
            f"{name} has shape {list(weight.shape.numpy())}, the plan's fold has {len(scales)} channels: make the plan "
            "again for this model."
        )
    value.const_value = weight.changed(lambda w: change(w, scales))
