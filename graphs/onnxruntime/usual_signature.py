"""Gives a lowered graph the signature that servers know: a mask goes in, keys and values grow from step to step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.onnxruntime.group_query_attention import SEQLENS, TOTAL
from spikeexport.graphs.onnxruntime.logit_positions import POSITIONS

_SCOPE = "usual_signature"
_PAST, _PRESENT = "past_key_values.", "present."


class UsualSignature(ir.passes.InPlacePass):
    """Replaces the inputs that only this project's runner knows.

    - `seqlens_k` and `total_sequence_length` are computed from `attention_mask` int64 [batch, past + sequence].
    - The baked prefix, which the runner puts into the buffer, becomes part of the graph: it is joined in front of each
      past and cut off each present, so past and present are [batch, kv_heads, past, D] and [.., past + sequence, D].
    - `logits_positions` becomes the last position: logits are [batch, 1, V].

    Batches of prompts are refused by the kernel (it takes several tokens behind a cache for one row only, and a prefix
    is a cache); rows have no padding on the left. A graph that kept its portable
    attention has most of this signature already; only its logits change.
    """

    def __init__(self, prefix: Mapping[str, np.ndarray]) -> None:
        """Takes the prefix, float32 [1, kv_heads, P, D] by `prefix.{layer}.key/value`; empty without one."""
        self._prefix = prefix

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        graph = model.graph
        inputs = {str(value.name): value for value in graph.inputs}
        put = NodeInserter(graph, graph[0])
        modified = False
        if POSITIONS in inputs:
            last = put.constant(f"{_SCOPE}.last", np.array([-1], np.int64))
            _replace_input(graph, inputs[POSITIONS], last)
            logits = next(value for value in graph.outputs if value.name == "logits")
            assert logits.shape is not None, "a lowered graph declares its logits"
            logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
            modified = True
        if SEQLENS in inputs:
            length = next(iter(self._prefix.values())).shape[2] if self._prefix else 0
            self._lengths_from_mask(graph, put, inputs, length)
            for name in [name for name in inputs if name.startswith(_PAST)]:
                _open_cache(graph, put, inputs[name], self._prefix.get(f"prefix.{name.removeprefix(_PAST)}"))
            modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _lengths_from_mask(
        self, graph: ir.Graph, put: NodeInserter, inputs: Mapping[str, ir.Value], prefix_length: int
    ) -> None:
        mask = ir.val("attention_mask", ir.DataType.INT64, ["batch", "total_sequence_len"])
        graph.inputs.insert(1, mask)
        axis = put.constant(f"{_SCOPE}.axis", np.array([1], np.int64))
        before = put.constant(f"{_SCOPE}.before_last", np.array(prefix_length - 1, np.int64))
        count = put("ReduceSum", mask, axis, name=f"{_SCOPE}/tokens", dtype=ir.DataType.INT64, keepdims=0)
        seqlens = put("Add", count, before, name=f"{_SCOPE}/last_place", dtype=ir.DataType.INT64)
        seqlens = put("Cast", seqlens, name=f"{_SCOPE}/seqlens_k", dtype=ir.DataType.INT32, to=ir.DataType.INT32)
        front = put.constant(f"{_SCOPE}.prefix_length", np.array(prefix_length, np.int64))
        shape = put("Shape", mask, name=f"{_SCOPE}/width", dtype=ir.DataType.INT64, start=1, end=2)
        scalar_axis = put.constant(f"{_SCOPE}.scalar_axis", np.array([0], np.int64))
        width = put("Squeeze", shape, scalar_axis, name=f"{_SCOPE}/mask_width", dtype=ir.DataType.INT64)
        total = put("Add", width, front, name=f"{_SCOPE}/all_tokens", dtype=ir.DataType.INT64)
        total = put("Cast", total, name=f"{_SCOPE}/total", dtype=ir.DataType.INT32, to=ir.DataType.INT32)
        _replace_input(graph, inputs[SEQLENS], seqlens)
        _replace_input(graph, inputs[TOTAL], total)


def _replace_input(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new)
    graph.inputs.remove(old)


def _open_cache(graph: ir.Graph, put: NodeInserter, past: ir.Value, prefix: np.ndarray | None) -> None:
    """Gives one cache the shapes of past and present, with the prefix in front of it inside the graph."""
    assert past.shape is not None, "a lowered graph declares its cache"
    heads, dim = past.shape[1], past.shape[3]
    attention = next(iter(past.uses())).node
    past.shape = ir.Shape(["batch", heads, "past_sequence_len", dim])
    name = str(past.name).replace(_PAST, _PRESENT)
    index, present = next((place, value) for place, value in enumerate(graph.outputs) if value.name == name)
    present.shape = ir.Shape(["batch", heads, "total_sequence_len", dim])
    if prefix is None:
        return
    whole = _with_prefix(put, past, prefix, str(past.name).removeprefix(_PAST))
    attention.replace_input_with(attention.inputs.index(past), whole)
    present.name = f"{name}.with_prefix"
    present.shape = None
    starts = put.constant(f"{_SCOPE}.behind_prefix", np.array([prefix.shape[2]], np.int64))
    ends = put.constant(f"{_SCOPE}.end", np.array([np.iinfo(np.int64).max], np.int64))
    axes = put.constant(f"{_SCOPE}.token_axis", np.array([2], np.int64))
    cut = ir.node("Slice", [present, starts, ends, axes], name=f"{_SCOPE}/{name}")
    graph.append(cut)
    cut.outputs[0].name, cut.outputs[0].type = name, present.type
    cut.outputs[0].shape = ir.Shape(["batch", heads, "total_sequence_len", dim])
    graph.outputs[index] = cut.outputs[0]


def _with_prefix(put: NodeInserter, past: ir.Value, prefix: np.ndarray, name: str) -> ir.Value:
    stored = put.constant(f"prefix.{name}", prefix)
    batch = put("Shape", past, name=f"{_SCOPE}/{name}/batch", dtype=ir.DataType.INT64, start=0, end=1)
    ones = put.constant(f"{_SCOPE}.ones", np.ones(3, np.int64))
    shape = put("Concat", batch, ones, name=f"{_SCOPE}/{name}/shape", dtype=ir.DataType.INT64, axis=0)
    spread = put("Expand", stored, shape, name=f"{_SCOPE}/{name}/Expand", dtype=past.dtype)
    return put("Concat", spread, past, name=f"{_SCOPE}/{name}/with_prefix", dtype=past.dtype, axis=2)
