"""Stores the output head as INT8 weights, dequantised (weight-only)."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.graphs.passes.linears import named_matmuls
from spikeexport.graphs.passes.quantize_weights import insert_int8_weight, quantise_linear
from spikeexport.graphs.weights import lazy_weight

LM_HEAD = "lm_head"


class QuantizeLmHead(ir.passes.InPlacePass):
    """lm_head's weight becomes INT8 per output channel; its input stays floating point.

    A head that shares the embedding's table gets INT8 codes of its own; the embedding keeps the table.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            GraphError: The graph has no output head of a known form.
        """
        if f"{LM_HEAD}.weight_q" in model.graph.initializers:
            return ir.passes.PassResult(model, modified=False)
        node = named_matmuls(model.graph).get(LM_HEAD)
        if node is None or node.inputs[1] is None:
            raise GraphError("The graph has no MatMul named lm_head: export with --lm-head fp.")
        if node.inputs[1].is_initializer():
            quantise_linear(model.graph, node, LM_HEAD)
        else:
            _quantise_tied(model.graph, node)
        return ir.passes.PassResult(model, modified=True)


def _quantise_tied(graph: ir.Graph, node: ir.Node) -> None:
    transpose = node.inputs[1].producer()  # type: ignore[union-attr]
    table = transpose.inputs[0] if transpose is not None and transpose.op_type == "Transpose" else None
    if transpose is None or table is None or not table.is_initializer():
        raise GraphError("lm_head reads a weight that the graph computes: export with --lm-head fp.")
    embedding = lazy_weight(table)
    rows, columns = embedding.shape.numpy()
    weight = embedding.changed(lambda w: w.T, name=f"{LM_HEAD}.weight_t", shape=(columns, rows))
    node.replace_input_with(1, insert_int8_weight(graph, node, LM_HEAD, weight))
    if not transpose.outputs[0].uses():
        graph.remove(transpose, safe=True)
