"""Names each linear's MatMul and weight after the checkpoint's module."""

from __future__ import annotations

import ast

import onnx_ir as ir
from spikeexport.graphs.passes.linears import MODULE_KEY
from spikeexport.graphs.weights import lazy_weight, set_weight

_SCOPES_KEY = "pkg.onnxscript.name_scopes"


class NameLinears(ir.passes.InPlacePass):
    """MatMul(x, Transpose(`<module>.weight`)) becomes MatMul(x, `<module>.weight_t` [in, out]) named `<module>/MatMul`.

    The weight is transposed lazily. A weight that something else reads too (a tied embedding) keeps its Transpose.
    All other nodes are named `<module>/<operator>` after the module that they come from.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "MatMul" and MODULE_KEY not in node.metadata_props:
                modified |= self._name_matmul(model.graph, node)
        return ir.passes.PassResult(model, modified=_name_nodes(model.graph) or modified)

    def _name_matmul(self, graph: ir.Graph, node: ir.Node) -> bool:
        transpose = node.inputs[1].producer() if node.inputs[1] is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            return False
        weight = transpose.inputs[0]
        if weight is None or not weight.is_initializer() or weight.shape is None or weight.shape.rank() != 2:
            return False
        module = str(weight.name).removesuffix(".weight")
        if len(weight.uses()) == 1:
            node.replace_input_with(1, _transposed(graph, weight))
            graph.remove(transpose, safe=True)
            del graph.initializers[str(weight.name)]
        else:
            module = _scope(node)
        node.metadata_props[MODULE_KEY] = module
        return True


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    rows, columns = lazy_weight(weight).shape.numpy()
    return set_weight(graph, lazy_weight(weight).changed(lambda w: w.T, name=f"{weight.name}_t", shape=(columns, rows)))


def _scope(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
    return ".".join(part for part in scopes if part)


def _name_nodes(graph: ir.Graph) -> bool:
    """Names nodes and their values, once: a named node has lost mobius's own metadata."""
    taken = {str(node.name) for node in graph if _SCOPES_KEY not in node.metadata_props}
    outputs = set(graph.outputs)
    named = False
    for node in graph:
        if _SCOPES_KEY not in node.metadata_props:
            continue
        node.name = _unique(f"{node.metadata_props.get(MODULE_KEY) or _scope(node) or 'model'}/{node.op_type}", taken)
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}/output" + (f".{index}" if index else "")
        for key in [key for key in node.metadata_props if key != MODULE_KEY]:
            del node.metadata_props[key]
        named = True
    return named


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
