"""Reading one decoder attention of the portable graph: where its tensors come from before they are joined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import constant_array, constant_shape
from spikeexport.graphs.onnxruntime.edits import producer


class NotThatForm(Exception):
    """An attention that is built otherwise; the message says how."""


@dataclass(frozen=True)
class KeyValue:
    """Keys or values of one attention: Concat(prefix, past, new) on the sequence axis.

    Attributes:
        new: What this step computes, [B, S, kv_heads * D].
        past: The graph input [B, kv_heads, past, D].
        present: The graph output Concat(past, new).
        prefix: The prefix's initializer [1, kv_heads, P, D], or None.
    """

    new: ir.Value
    past: ir.Value
    present: ir.Value
    prefix: ir.Value | None

    @property
    def prefix_length(self) -> int:
        """P, the number of prefix tokens."""
        shape = constant_shape(self.prefix)
        return shape[2] if shape is not None else 0


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding by tables.

    Attributes:
        cos: Initializer float32 [positions, rotary_dim / 2].
        sin: The same.
        interleaved: Whether pairs are neighbours.
        offset: What is added to position_ids before the lookup.
    """

    cos: ir.Value
    sin: ir.Value
    interleaved: int
    offset: int


@dataclass(frozen=True)
class AttentionSite:
    """One attention of the decoder.

    Attributes:
        node: The Attention node (opset 23 or 24).
        query: [B, S, heads * D], rotated already where the model has rope.
        key: Its keys.
        value: Its values.
        mask: The mask input, or None.
        heads: Query heads.
        kv_heads: Key/value heads.
        scale: What q k^T is multiplied with; None = 1 / sqrt(D).
        softcap: 0 = none.
    """

    node: ir.Node
    query: ir.Value
    key: KeyValue
    value: KeyValue
    mask: ir.Value | None
    heads: int
    kv_heads: int
    scale: float | None
    softcap: float


def read_attention(node: ir.Node) -> AttentionSite:
    """Reads an Attention node as the portable graph has it.

    Raises:
        NotThatForm: It is built otherwise.
    """
    if len(node.inputs) > 4 and any(value is not None for value in node.inputs[4:]):
        raise NotThatForm("the past goes into Attention itself")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise NotThatForm("Attention's further outputs are read")
    if node.attributes.get_int("is_causal", 0):
        raise NotThatForm("Attention makes its own causal mask")
    query = node.inputs[0]
    assert query is not None
    query, query_heads = flat_heads(query)
    key, value = _read_key_value(node.inputs[1]), _read_key_value(node.inputs[2])
    kv_shape = key.past.shape
    kv_heads = node.attributes.get_int("kv_num_heads", 0) or (kv_shape[1] if kv_shape is not None else 0)
    heads = node.attributes.get_int("q_num_heads", 0) or query_heads
    if not isinstance(kv_heads, int) or not kv_heads or not heads:
        raise NotThatForm("the numbers of heads are not static")
    return AttentionSite(
        node=node,
        query=query,
        key=key,
        value=value,
        mask=node.inputs[3] if len(node.inputs) > 3 else None,
        heads=heads,
        kv_heads=kv_heads,
        scale=node.attributes.get_float("scale") if "scale" in node.attributes else None,
        softcap=node.attributes.get_float("softcap", 0.0),
    )


def flat_heads(value: ir.Value) -> tuple[ir.Value, int]:
    """Walks from [B, heads, S, D] back to [B, S, heads * D]; returns that and heads (0 when it was flat already).

    Raises:
        NotThatForm: Something else than Reshape and Transpose(0, 2, 1, 3) stands between.
    """
    transpose = producer(value, "Transpose")
    if transpose is None:
        return value, 0
    if list(transpose.attributes.get_ints("perm", ())) != [0, 2, 1, 3]:
        raise NotThatForm(f"{transpose.name} moves other axes than heads and sequence")
    reshape = producer(transpose.inputs[0], "Reshape")
    shape = constant_array(reshape.inputs[1]) if reshape is not None else None
    if reshape is None or shape is None or len(shape) != 4:
        raise NotThatForm(f"{transpose.name} does not split heads off a flat tensor")
    assert reshape.inputs[0] is not None
    return reshape.inputs[0], int(shape[2])


def _read_key_value(joined: ir.Value | None) -> KeyValue:
    parts = _concat_parts(joined)
    prefix = _expanded_constant(parts[0])
    if prefix is not None:
        parts = parts[1:]
    if len(parts) != 2 or not parts[0].is_graph_input():
        raise NotThatForm("keys or values are no Concat of prefix, past input and new ones")
    past, new = parts
    return KeyValue(flat_heads(new)[0], past, _present(past, new), prefix)


def _concat_parts(value: ir.Value | None) -> list[ir.Value]:
    node = producer(value, "Concat")
    if node is None or node.attributes.get_int("axis", 0) not in (2, -2):
        assert value is not None
        return [value]
    return [part for source in node.inputs for part in _concat_parts(source)]


def _expanded_constant(value: ir.Value) -> ir.Value | None:
    expand = producer(value, "Expand")
    source = expand.inputs[0] if expand is not None else value
    shape = constant_shape(source)
    return source if shape is not None and len(shape) == 4 else None


def _present(past: ir.Value, new: ir.Value) -> ir.Value:
    for node, _ in past.uses():
        if (
            node.op_type == "Concat"
            and node.outputs[0].is_graph_output()
            and _concat_parts(node.outputs[0]) == [past, new]
        ):
            return node.outputs[0]
    raise NotThatForm(f"no output joins {past.name} with the new keys or values")


def read_rope(query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value, Rope]:
    """Walks from the rotated query and key back to the plain ones.

    Returns:
        Query and key [B, S, heads * D] before the rotation, and the tables.

    Raises:
        NotThatForm: There is no rotation, or not by two tables looked up with position_ids.
    """
    nodes = [producer(query, "RotaryEmbedding"), producer(key, "RotaryEmbedding")]
    if nodes[0] is None or nodes[1] is None:
        raise NotThatForm("query or key is not rotated by RotaryEmbedding")
    ropes = [_read_tables(node) for node in nodes if node is not None]
    if ropes[0] != ropes[1]:
        raise NotThatForm("query and key are rotated by different tables")
    plain_query, plain_key = nodes[0].inputs[0], nodes[1].inputs[0]
    assert plain_query is not None
    assert plain_key is not None
    return plain_query, plain_key, ropes[0]


def _read_tables(node: ir.Node) -> Rope:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise NotThatForm("RotaryEmbedding looks its positions up by itself")
    lookups = [producer(node.inputs[place], "Gather") for place in (1, 2)]
    if lookups[0] is None or lookups[1] is None:
        raise NotThatForm("the rope tables are not looked up by Gather")
    tables = [lookup.inputs[0] for lookup in lookups if lookup is not None]
    if any(table is None or len(constant_shape(table) or ()) != 2 for table in tables):
        raise NotThatForm("the rope tables are computed at run time")
    offsets = {_position_offset(lookup.inputs[1]) for lookup in lookups if lookup is not None}
    if len(offsets) != 1:
        raise NotThatForm("cos and sin are looked up at different positions")
    assert tables[0] is not None
    assert tables[1] is not None
    return Rope(tables[0], tables[1], node.attributes.get_int("interleaved", 0), offsets.pop())


def _position_offset(positions: ir.Value | None) -> int:
    if positions is not None and positions.is_graph_input() and positions.name == "position_ids":
        return 0
    add = producer(positions, "Add")
    if add is not None:
        for value, other in (add.inputs, add.inputs[::-1]):
            array = constant_array(other)
            if value is not None and value.name == "position_ids" and array is not None and array.size == 1:
                return int(np.asarray(array).reshape(()))
    raise NotThatForm("positions are not position_ids plus a constant")
