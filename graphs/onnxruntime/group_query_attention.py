"""Rope, cache and attention as one GroupQueryAttention that writes into a KV buffer shared by past and present."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import onnx_ir as ir
from spikeexport.graphs.onnxruntime.attention_site import AttentionSite, NotThatForm, Rope, read_attention, read_rope
from spikeexport.graphs.onnxruntime.constants import constant_shape
from spikeexport.graphs.onnxruntime.edits import insert_before, only_reader, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.mask_probe import why_not_causal

SEQLENS = "seqlens_k"
"""Graph input int32 [batch]: tokens of each row in the cache after this step (prefix included), minus 1."""

TOTAL = "total_sequence_length"
"""Graph input int32 []: the largest number of tokens in the cache after this step, prefix included."""

_HEAD_MULTIPLE = 8
_ROTARY_MULTIPLE = 16


@dataclass(frozen=True)
class _Fit:
    site: AttentionSite
    query: ir.Value
    key: ir.Value
    rope: Rope | None
    end: ir.Value


class FuseGroupQueryAttention(LoweringPass):
    """Concat(prefix, past, new) + RotaryEmbedding + Attention -> GroupQueryAttention with `do_rotary`.

    All layers or none, because the cache's layout changes for the caller: `past_key_values.{i}.*` and `present.{i}.*`
    become one buffer [batch, kv_heads, capacity, D] whose first P rows the caller fills with the prefix; `seqlens_k`
    and `total_sequence_length` (both counting the prefix) take the place of the mask. Rotation by other means than two
    tables stays in front of the kernel.
    """

    name = "group-query-attention"

    def rewrite(self, graph: ir.Graph) -> None:
        """Fuses every attention when all of them fit."""
        nodes = [node for node in graph if node.op_type == "Attention" and not node.domain]
        try:
            fits = [_fit(node) for node in nodes]
            _check_masks(graph, fits)
        except NotThatForm as refusal:
            self.skip("model", f"attention keeps its portable form: {refusal}")
            return
        if not fits:
            return
        seqlens, total = _length_inputs(graph)
        for fit in fits:
            _fuse(fit, seqlens, total)
            self.applied += 1
        _share_buffers(fits)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuses, then drops the inputs that nothing reads any more (the mask, positions)."""
        result = super().call(model)
        if self.applied:
            _drop_unread_inputs(model.graph)
        return result


def _fit(node: ir.Node) -> _Fit:
    site = read_attention(node)
    head_dim = site.key.past.shape[3] if site.key.past.shape is not None else None
    if not isinstance(head_dim, int) or head_dim % _HEAD_MULTIPLE:
        raise NotThatForm(f"{node.name} has head_dim {head_dim}, expected a multiple of {_HEAD_MULTIPLE}")
    if site.value.past.shape is None or site.value.past.shape[3] != head_dim:
        raise NotThatForm(f"{node.name} has values of another width than its keys")
    if site.heads % site.kv_heads:
        raise NotThatForm(f"{node.name} has {site.heads} heads over {site.kv_heads} key/value heads")
    query, key, rope = site.query, site.key.new, None
    with contextlib.suppress(NotThatForm):  # A rotation by other means stays a node of its own.
        query, key, rope = read_rope(site.query, site.key.new)
    if rope is not None and not _kernel_rotates(rope, site.key.prefix_length):
        query, key, rope = site.query, site.key.new, None
    return _Fit(site, query, key, rope, _flat_output(node))


def _kernel_rotates(rope: Rope, prefix_length: int) -> bool:
    """Whether the kernel can rotate: it counts positions from the cache's start and wants 16 | rotary dimension."""
    shape = constant_shape(rope.cos)
    return shape is not None and (2 * shape[1]) % _ROTARY_MULTIPLE == 0 and rope.offset == prefix_length


def _flat_output(node: ir.Node) -> ir.Value:
    """Returns the [B, S, heads * D] value behind Attention: its own output, or the one after Transpose and Reshape."""
    output = node.outputs[0]
    if node.attributes.get_int("q_num_heads", 0):
        return output
    transpose = only_reader(output)
    reshape = only_reader(transpose.outputs[0]) if transpose is not None and transpose.op_type == "Transpose" else None
    if reshape is None or reshape.op_type != "Reshape":
        raise NotThatForm(f"{node.name}'s heads are not merged by Transpose and Reshape")
    return reshape.outputs[0]


def _check_masks(graph: ir.Graph, fits: list[_Fit]) -> None:
    """Makes sure that all layers see the same, plainly causal mask.

    Raises:
        NotThatForm: A layer has another mask, or it hides more than the future.
    """
    masks = {fit.site.mask for fit in fits}
    lengths = {fit.site.key.prefix_length for fit in fits}
    if len(masks) > 1 or len(lengths) > 1:
        raise NotThatForm("layers differ in their masks or prefixes")
    mask = next(iter(masks), None)
    if fits and mask is None:
        raise NotThatForm("attention has no mask")
    if mask is None:
        return
    reason = why_not_causal(graph, mask, lengths.pop(), _longest(fits))
    if reason is not None:
        raise NotThatForm(reason)


def _longest(fits: list[_Fit]) -> int:
    """Returns the number of positions of the shortest rope table, or 4096 where there is none."""
    tables = [constant_shape(fit.rope.cos) for fit in fits if fit.rope is not None]
    return min((shape[0] for shape in tables if shape), default=4096)


def _length_inputs(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    seqlens = ir.val(SEQLENS, ir.DataType.INT32, ["batch"])
    total = ir.val(TOTAL, ir.DataType.INT32, [])
    graph.inputs.extend([seqlens, total])
    return seqlens, total


def _fuse(fit: _Fit, seqlens: ir.Value, total: ir.Value) -> None:
    site, rope = fit.site, fit.rope
    presents = [site.key.present, site.value.present]
    attributes: dict[str, int | float] = {
        "num_heads": site.heads,
        "kv_num_heads": site.kv_heads,
        "do_rotary": int(rope is not None),
        "rotary_interleaved": rope.interleaved if rope is not None else 0,
        "softcap": site.softcap,
    }
    if site.scale is not None:
        attributes["scale"] = site.scale
    fused = insert_before(
        site.node,
        "GroupQueryAttention",
        [
            *(fit.query, fit.key, site.value.new, site.key.past, site.value.past, seqlens, total),
            *((rope.cos, rope.sin) if rope is not None else ()),
        ],
        attributes,
        domain=MICROSOFT,
        name=f"{str(site.node.name).rpartition('/')[0] or site.node.name}/GroupQueryAttention",
        outputs=("", "", ""),
        metadata=site.node.metadata_props,
    )
    take_over(fit.end, fused.outputs[0])
    for present, output in zip(presents, fused.outputs[1:], strict=True):
        take_over(present, output)


def _share_buffers(fits: list[_Fit]) -> None:
    """Declares past and present with one symbolic capacity: the caller binds both to one buffer."""
    for fit in fits:
        for half in (fit.site.key, fit.site.value):
            shape = half.past.shape
            assert shape is not None
            half.past.shape = ir.Shape(["batch", shape[1], "capacity", shape[3]])
    graph = fits[0].site.key.past.graph
    assert graph is not None
    for output in graph.outputs:
        if str(output.name).startswith("present.") and output.shape is not None:
            output.shape = ir.Shape(["batch", output.shape[1], "capacity", output.shape[3]])


def _drop_unread_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
