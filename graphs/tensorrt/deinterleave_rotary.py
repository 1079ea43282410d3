"""Turns interleaved rotary embeddings into the other kind, which TensorRT compiles."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.insertion import NodeInserter

_SWAP_LAST = [0, 1, 2, 4, 3]


class DeinterleaveRotary(ir.passes.InPlacePass):
    """RotaryEmbedding(interleaved=1) becomes: pairs apart, RotaryEmbedding(interleaved=0), pairs together again.

    TensorRT-RTX 1.7 stops with an internal error on the interleaved operator (Cohere) when shapes are dynamic. The
    channels come back in their order, so that caches and prefix keep their layout.

    Left alone: embeddings of a part of the head's channels.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "RotaryEmbedding" and node.attributes.get_int("interleaved", 0) == 1:
                modified = _rewrite(model.graph, node) or modified
        return ir.passes.PassResult(model, modified=modified)


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    value, heads = node.inputs[0], node.attributes.get_int("num_heads", 0)
    half = _last(node.inputs[1])
    dim = node.attributes.get_int("rotary_embedding_dim", 0)
    if value is None or half is None or dim not in (0, 2 * half):
        return False
    # [B, S, heads * D] with the number of heads as attribute, or [B, heads, S, D]
    lead, whole = ([0, 0, heads], [0, 0, 2 * half * heads]) if heads else ([0, 0, 0], [0, 0, 0, 2 * half])
    put, name = NodeInserter(graph, node), str(node.name)
    shapes = {
        "pairs": [*lead, half, 2],
        "halves": [*lead, 2, half],
        "whole": whole,
    }
    constants = {
        key: put.constant(f"rotary.{key}_{'_'.join(map(str, shape))}", np.array(shape, np.int64))
        for key, shape in shapes.items()
    }
    apart = put("Reshape", value, constants["pairs"], name=f"{name}/pairs", dtype=value.dtype)
    apart = put("Transpose", apart, name=f"{name}/apart", dtype=value.dtype, perm=_SWAP_LAST)
    apart = put("Reshape", apart, constants["whole"], name=f"{name}/halves", dtype=value.dtype)
    kept = [attribute for key, attribute in node.attributes.items() if key != "interleaved"]
    turned = ir.Node("", "RotaryEmbedding", [apart, *node.inputs[1:]], kept, name=name)
    graph.insert_before(node, turned)
    turned.outputs[0].type = node.outputs[0].type
    back = put("Reshape", turned.outputs[0], constants["halves"], name=f"{name}/by_half", dtype=value.dtype)
    back = put("Transpose", back, name=f"{name}/together", dtype=value.dtype, perm=_SWAP_LAST)
    back = put("Reshape", back, constants["whole"], name=f"{name}/whole", dtype=value.dtype)
    back.shape = node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(back)
    graph.remove(node, safe=True)
    return True


def _last(value: ir.Value | None) -> int | None:
    size = value.shape[-1] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None
