"""Puts one QuantizeLinear / DequantizeLinear pair on each quantised input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError, PlanError
from spikeexport.calibration.foundation.progress import warn
from spikeexport.calibration.records.plan import InputSite
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.linears import named_matmuls
from spikeexport.graphs.quantize import check_activation_scale


class InsertActivationQdq(ir.passes.InPlacePass):
    """x -> Q -> DQ in front of the linears of a site, which share the pair (TensorRT then merges q/k/v and gate/up).

    Scales are float32 scalars and zero points int8 zeros, both always given: without a zero point ONNX means UINT8 and
    TensorRT INT8. In an FP16 or BF16 graph x is cast to FP32 before and back after the pair, because a float32 scale
    keeps the INT8 product out of FP16's range limits.
    """

    def __init__(self, sites: Sequence[InputSite]) -> None:
        """Takes the plan's quantised inputs."""
        self._sites = sites

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place.

        Raises:
            GraphError: A linear of the plan is not in the graph, or linears of one site read different tensors.
            PlanError: A scale is not usable, or subnormal in an FP16 graph.
        """
        matmuls = named_matmuls(model.graph)
        order = {node: index for index, node in enumerate(model.graph)}
        modified = False
        for site in self._sites:
            nodes = [_find(matmuls, linear) for linear in site.linears]
            if f"{site.name}.input_scale" in model.graph.initializers:
                continue
            source = _shared_input(site, nodes)
            first = min(nodes, key=order.__getitem__)
            quantised = _insert_pair(NodeInserter(model.graph, first), site, source)
            for node in nodes:
                node.replace_input_with(0, quantised)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _find(matmuls: dict[str, ir.Node], linear: str) -> ir.Node:
    node = matmuls.get(linear)
    if node is None:
        raise GraphError(f"The plan quantises {linear}, which the graph does not have: make the plan again.")
    return node


def _shared_input(site: InputSite, nodes: list[ir.Node]) -> ir.Value:
    source = nodes[0].inputs[0]
    for node, linear in zip(nodes, site.linears, strict=True):
        if node.inputs[0] is not source:
            raise GraphError(
                f"{linear} reads {node.inputs[0].name if node.inputs[0] else None}, but {site.name}, with which the "
                f"plan lets it share a scale, reads {source.name if source else None}."
            )
    assert source is not None
    return source


def _insert_pair(put: NodeInserter, site: InputSite, source: ir.Value) -> ir.Value:
    problem = check_activation_scale(site.scale, site.name)
    if problem and source.dtype == ir.DataType.FLOAT16:
        raise PlanError(f"{problem} Export with --dtype bf16 or fp32, or leave it out with --exclude.")
    if problem:
        warn(problem)
    scale = put.constant(f"{site.name}.input_scale", np.float32(site.scale))
    zero = put.constant(f"{site.name}.input_zero_point", np.int8(0))
    scope, dtype, shape = f"{site.name}/input", source.dtype, source.shape
    value = source
    if dtype != ir.DataType.FLOAT:
        value = put("Cast", value, name=f"{scope}/CastToFloat", dtype=ir.DataType.FLOAT, shape=shape, to=1)
    value = put(
        "QuantizeLinear", value, scale, zero, name=f"{scope}/QuantizeLinear", dtype=ir.DataType.INT8, shape=shape
    )
    value = put(
        "DequantizeLinear", value, scale, zero, name=f"{scope}/DequantizeLinear", dtype=ir.DataType.FLOAT, shape=shape
    )
    if dtype != ir.DataType.FLOAT and dtype is not None:
        value = put("Cast", value, name=f"{scope}/CastBack", dtype=dtype, shape=shape, to=dtype)
    return value
