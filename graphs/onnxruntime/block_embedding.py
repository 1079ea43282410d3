"""Token embedding and head in 8 bits per block, stored once where they are tied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_constant, add_lazy_constant, constant_array, constant_shape
from spikeexport.graphs.onnxruntime.edits import insert_before, producer, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass
from spikeexport.graphs.onnxruntime.weight_only_linear import ACCURACY_INT8, nbits_attributes
from spikeexport.graphs.onnxruntime.weights import MODULE_KEY, is_linear, read_weight

HEAD = "lm_head"
"""Module path of the head."""

_BLOCKS = (64, 32, 16)


class BlockEmbedding(LoweringPass):
    """Gather(embedding) -> GatherBlockQuantized, and the head's MatMul on floating-point weights -> MatMulNBits.

    Both read [V, blocks, block] uint8 (zero point 128) with one FP32 scale per block, absmax / 127: a tied head reads
    the embedding's own initializer. This rounds floating-point weights, so unlike the other passes it is no exact
    rewriting: each weight moves by at most half a step of its block.
    """

    name = "int8-embedding"

    def __init__(self, accuracy: int = ACCURACY_INT8) -> None:
        super().__init__()
        self.accuracy = accuracy

    def rewrite(self, graph: ir.Graph) -> None:
        """Quantises the table that `input_ids` look up and the head's weight."""
        for node in list(graph):
            if node.op_type == "Gather" and not node.domain and _is_embedding(node):
                self._embedding(graph, node)
            elif is_linear(node) and node.metadata_props.get(MODULE_KEY) == HEAD:
                self._head(graph, node)

    def _embedding(self, graph: ir.Graph, node: ir.Node) -> None:
        table = node.inputs[0]
        assert table is not None
        quantized = self._table(graph, node, table, transposed=False)
        if quantized is None:
            return
        codes, scales = quantized
        shape = constant_shape(codes)
        assert shape is not None
        flat = add_constant(graph, "embedding.merged", np.array([0, 0, -1], np.int64))
        last = add_constant(graph, "embedding.scale_axis", np.array([2], np.int64))
        # The operator wants scales of the data's rank; folded when loading, so that the file holds them once.
        deep = insert_before(node, "Unsqueeze", [scales, last], name=f"{node.name}/Scales")
        rows = insert_before(
            node,
            "GatherBlockQuantized",
            [codes, node.inputs[1], deep.outputs[0]],
            {"bits": 8, "block_size": shape[2], "gather_axis": 0, "quantize_axis": 2},
            domain=MICROSOFT,
            name=f"{node.name}/GatherBlockQuantized",
        )
        merged = insert_before(node, "Reshape", [rows.outputs[0], flat], name=f"{node.name}/Reshape")
        take_over(node.outputs[0], merged.outputs[0])
        self.applied += 1

    def _head(self, graph: ir.Graph, node: ir.Node) -> None:
        if read_weight(node.inputs[1]) is not None:
            return
        transpose = producer(node.inputs[1], "Transpose")
        table = transpose.inputs[0] if transpose is not None else node.inputs[1]
        if len(constant_shape(table) or ()) != 2:
            self.skip(node, "its weight is computed at run time")
            return
        assert table is not None
        quantized = self._table(graph, node, table, transposed=transpose is None)
        if quantized is None:
            return
        codes, scales = quantized
        outputs, blocks, block = constant_shape(codes) or (0, 0, 0)
        product = insert_before(
            node,
            "MatMulNBits",
            [node.inputs[0], codes, scales],
            nbits_attributes(blocks * block, outputs, block, self.accuracy),
            domain=MICROSOFT,
            name=f"{node.metadata_props.get(MODULE_KEY, node.name)}/MatMulNBits",
            metadata=node.metadata_props,
        )
        take_over(node.outputs[0], product.outputs[0])
        self.applied += 1

    def _table(
        self, graph: ir.Graph, node: ir.Node, table: ir.Value, *, transposed: bool
    ) -> tuple[ir.Value, ir.Value] | None:
        """Returns codes uint8 [V, blocks, block], scales float32 [V, blocks] of a table [V, H] or its transpose."""
        shape = constant_shape(table)
        if shape is None or len(shape) != 2 or table.dtype != ir.DataType.FLOAT:
            self.skip(node, "its table is not a constant FP32 matrix")
            return None
        rows, width = shape[::-1] if transposed else shape
        block = next((size for size in _BLOCKS if width % size == 0), None)
        if block is None:
            self.skip(node, f"width {width} is no multiple of {_BLOCKS[-1]}")
            return None

        def quantized(part: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[], np.ndarray]:
            return lambda: part(_rows(table, transposed), block)

        codes = add_lazy_constant(
            graph, f"{table.name}.blocks", quantized(block_codes), ir.DataType.UINT8, (rows, width // block, block)
        )
        scales = add_lazy_constant(
            graph, f"{table.name}.block_scales", quantized(block_scales), ir.DataType.FLOAT, (rows, width // block)
        )
        return codes, scales


def block_scales(table: np.ndarray, block: int) -> np.ndarray:
    """Returns float32 [rows, blocks]: absmax / 127 of each block, 1 where a block is all zero."""
    rows, width = table.shape
    absmax = np.abs(table.reshape(rows, width // block, block)).max(axis=2).astype(np.float32)
    return np.where(absmax > 0, absmax / np.float32(127), np.float32(1))


def block_codes(table: np.ndarray, block: int) -> np.ndarray:
    """Returns uint8 [rows, blocks, block] with zero point 128 for a float table [rows, width]."""
    rows, width = table.shape
    scales = block_scales(table, block)[:, :, None]
    codes = np.rint(table.reshape(rows, width // block, block) / scales)
    return (np.clip(codes, -127, 127) + 128).astype(np.uint8)


def _rows(table: ir.Value, transposed: bool) -> np.ndarray:
    array = constant_array(table)
    assert array is not None
    return array.T if transposed else array


def _is_embedding(node: ir.Node) -> bool:
    indices = node.inputs[1]
    return indices is not None and indices.is_graph_input() and indices.name == "input_ids"
