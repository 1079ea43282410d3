"""RMSNormalization as ONNX Runtime's SimplifiedLayerNormalization, with the residual add fused in front of it."""

from __future__ import annotations

import onnx_ir as ir
from spikeexport.graphs.onnxruntime.constants import add_constant, constant_array, constant_shape
from spikeexport.graphs.onnxruntime.edits import insert_before, producer, take_over
from spikeexport.graphs.onnxruntime.lowering_pass import MICROSOFT, LoweringPass


class SimplifyRmsNorm(LoweringPass):
    """RMSNormalization (opset 23, last axis) -> SimplifiedLayerNormalization, which has the faster CPU kernel."""

    name = "rms-norm"

    def rewrite(self, graph: ir.Graph) -> None:
        """Replaces each norm over the last axis."""
        for node in list(graph):
            if node.op_type != "RMSNormalization" or node.domain:
                continue
            axis = node.attributes.get_int("axis", -1)
            if axis != -1:
                self.skip(node, f"normalises from axis {axis}, expected -1")
                continue
            norm = insert_before(
                node,
                "SimplifiedLayerNormalization",
                node.inputs,
                {"axis": -1, "epsilon": node.attributes.get_float("epsilon", 1e-5), "stash_type": 1},
                name=node.name,
                metadata=node.metadata_props,
            )
            take_over(node.outputs[0], norm.outputs[0])
            self.applied += 1


class FoldNormWeights(LoweringPass):
    """Add(constant, weight) -> one initializer: norms that multiply by 1 + weight get a plain weight."""

    name = "norm-weights"

    def rewrite(self, graph: ir.Graph) -> None:
        """Folds each sum of two constants that scales a norm."""
        for node in list(graph):
            if node.op_type not in _NORMS or len(node.inputs) < 2:
                continue
            add = producer(node.inputs[1], "Add")
            parts = [constant_array(value) for value in add.inputs] if add is not None else []
            if len(parts) != 2 or parts[0] is None or parts[1] is None:
                continue
            node.replace_input_with(1, add_constant(graph, f"{node.name}.weight", parts[0] + parts[1]))
            self.applied += 1


_NORMS = frozenset({"RMSNormalization", "SimplifiedLayerNormalization"})


class FuseSkipNorm(LoweringPass):
    """Add + SimplifiedLayerNormalization -> SkipSimplifiedLayerNormalization, whose 4th output is the sum."""

    name = "skip-norm"

    def rewrite(self, graph: ir.Graph) -> None:
        """Fuses each norm whose input is a residual add of two tensors computed at run time."""
        for node in list(graph):
            if node.op_type != "SimplifiedLayerNormalization":
                continue
            add = producer(node.inputs[0], "Add")
            if add is None or any(constant_shape(value) is not None for value in add.inputs):
                continue
            if constant_shape(node.inputs[1]) is None:
                self.skip(node, "its weight is computed at run time")
                continue
            self._fuse(add, node)

    def _fuse(self, add: ir.Node, norm: ir.Node) -> None:
        fused = insert_before(
            add,
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, norm.inputs[1]],
            {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
            domain=MICROSOFT,
            name=norm.name,
            outputs=("", "", "", ""),
            metadata=norm.metadata_props,
        )
        take_over(norm.outputs[0], fused.outputs[0])
        take_over(add.outputs[0], fused.outputs[3])
        for unused in (1, 2):
            fused.outputs[unused].name = ""
        self.applied += 1
