"""Puts one QuantizeLinear / DequantizeLinear pair on each quantised input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.foundation.progress import warn
from spikeexport.calibration.records.plan import InputSite
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.site_readers import SiteFinder
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
        finder = SiteFinder(model.graph)
        modified = False
        for site in self._sites:
            readers = finder.readers(site, "quantises")
            if f"{site.name}.input_scale" in model.graph.initializers:
                continue
            readers.read(_insert_pair(readers.put, site, readers.source))
            modified = True
        return ir.passes.PassResult(model, modified=modified)


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
