"""What an attention mask means, found out by running the part of the graph that makes it on small inputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

_IR_VERSION = 10

_SMALL_STEPS = ((6, 0), (3, 5), (1, 4))
"""(new, past) tokens of the small probes."""


def why_not_causal(graph: ir.Graph, mask: ir.Value, prefix_length: int, longest: int) -> str | None:
    """Says why `mask` hides or shows other keys than a causal mask with a visible prefix; None when it is just that.

    The probes are a prompt, a chunk behind a past, one token, and one token behind `longest` - 1, where windows show.

    Args:
        graph: The graph that computes the mask from the decoder's inputs.
        mask: bool (visible) or float (added) mask, broadcastable to [B, heads, S, P + past + S].
        prefix_length: P.
        longest: Most positions of the model, prefix included.
    """
    import onnxruntime as ort

    part = mask_model(graph, mask)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(part).SerializeToString(), options, providers=["CPUExecutionProvider"])
    for new, past in (*_SMALL_STEPS, (1, longest - prefix_length - 1)):
        (found,) = session.run(None, dict(_probe_inputs(part, new, past)))
        visible = found if found.dtype == np.bool_ else found == 0
        expected = np.tril(np.ones((new, prefix_length + past + new), np.bool_), prefix_length + past)
        if visible.ndim != 4 or visible.shape[-2:] != expected.shape or not (visible == expected).all():
            return f"its mask is not plainly causal ({new} new tokens behind {past})"
    return None


def mask_model(graph: ir.Graph, mask: ir.Value) -> ir.Model:
    """Returns a model of its own that computes `mask` from those graph inputs that it needs."""
    nodes: list[ir.Node] = []
    inputs: dict[str, ir.Value] = {}
    constants: dict[str, ir.Value] = {}
    _collect(mask, nodes, inputs, constants)
    copies = {value: _copy(value) for value in (*inputs.values(), *constants.values())}
    new_nodes = []
    for node in nodes:
        outputs = [_copy(output) for output in node.outputs]
        copies.update(zip(node.outputs, outputs, strict=True))
        new_nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                [copies[value] if value is not None else None for value in node.inputs],
                list(node.attributes.values()),
                outputs=outputs,
            )
        )
    part = ir.Graph(
        [copies[value] for value in inputs.values()],
        [copies[mask]],
        nodes=new_nodes,
        initializers=[copies[value] for value in constants.values()],
        opset_imports=dict(graph.opset_imports),
        name="mask",
    )
    return ir.Model(part, ir_version=_IR_VERSION)


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)


def _collect(
    value: ir.Value, nodes: list[ir.Node], inputs: dict[str, ir.Value], constants: dict[str, ir.Value]
) -> None:
    node = value.producer()
    if node is None:
        (inputs if value.is_graph_input() else constants)[str(value.name)] = value
        return
    if node in nodes:
        return
    for source in node.inputs:
        if source is not None:
            _collect(source, nodes, inputs, constants)
    nodes.append(node)


def _probe_inputs(part: ir.Model, new: int, past: int) -> Iterator[tuple[str, np.ndarray]]:
    for value in part.graph.inputs:
        name = str(value.name)
        if name == "input_ids":
            yield name, np.zeros((1, new), np.int64)
        elif name == "attention_mask":
            yield name, np.ones((1, past + new), np.int64)
        elif name == "position_ids":
            yield name, np.arange(past, past + new, dtype=np.int64)[None]
        else:
            assert value.shape is not None
            assert value.dtype is not None
            _, heads, _, dim = value.shape
            yield name, np.zeros((1, int(str(heads)), past, int(str(dim))), value.dtype.numpy())
