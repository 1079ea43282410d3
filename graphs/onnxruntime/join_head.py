"""Body and head as one graph again, for programs that open one file."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.onnxruntime.split_head import HIDDEN


def join_head(body: ir.Model, head: ir.Model) -> None:
    """Moves the head's nodes and weights into `body`, whose output `hidden` becomes `logits` [batch, kept, V].

    Args:
        body: A prefill or decode form, changed in place.
        head: Its head, emptied.
    """
    graph = body.graph
    place = next(index for index, value in enumerate(graph.outputs) if value.name == HIDDEN)
    entry = next(value for value in head.graph.inputs if value.name == HIDDEN)
    logits = next(value for value in head.graph.outputs if value.name == "logits")
    ir.convenience.replace_all_uses_with(entry, graph.outputs[place])
    for name, value in list(head.graph.initializers.items()):
        del head.graph.initializers[name]
        if name not in graph.initializers:
            graph.register_initializer(value)
        else:
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
    head.graph.outputs.clear()
    nodes = list(head.graph)
    head.graph.remove(nodes)
    graph.extend(nodes)
    graph.outputs[place] = logits
    for domain, version in head.opset_imports.items():
        body.opset_imports.setdefault(domain, version)
