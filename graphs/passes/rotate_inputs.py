"""Rotates a quantised input block by block, and the weights that read it the other way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import InputSite, PlanTensors
from spikeexport.graphs.insertion import NodeInserter
from spikeexport.graphs.passes.linears import stored_weight
from spikeexport.graphs.passes.site_readers import SiteFinder, SiteReaders
from spikeexport.graphs.weights import lazy_weight


class RotateInputs(ir.passes.InPlacePass):
    """x W -> (x R) (R^T W), which is the same function with an input whose large channels are spread out.

    R is orthogonal, [block, block], and works on each block of the channels: Reshape, MatMul, Reshape in front of
    where a site's Q/DQ pair goes. Sites with equal R share the initializer.
    """

    def __init__(self, sites: Sequence[InputSite], tensors: PlanTensors) -> None:
        """Takes the plan's sites, of which those with a rotation are changed, and the plan's tensors."""
        self._sites = [site for site in sites if site.rotation is not None]
        self._tensors = tensors

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place; must run before inputs are shifted and weights are quantised.

        Raises:
            GraphError: A linear is not in the graph, or its input does not consist of such blocks.
        """
        done = {str(node.name) for node in model.graph}
        finder = SiteFinder(model.graph)
        pending = [site for site in self._sites if f"{site.name}/input/Rotate" not in done]
        for site in pending:
            self._rotate(finder.readers(site, "rotates"), site)
        return ir.passes.PassResult(model, modified=bool(pending))

    def _rotate(self, readers: SiteReaders, site: InputSite) -> None:
        rotation = self._tensors[str(site.rotation)].astype(np.float32)
        for linear, node in zip(site.linears, readers.nodes, strict=True):
            _rotate_weight(linear, node, rotation)
        if readers.source.shape is None or readers.source.dtype is None:
            raise GraphError(f"{site.name}: the shape of its input is not known, so that it cannot be rotated.")
        readers.read(_insert(readers.put, site, readers.source, rotation))


def _insert(put: NodeInserter, site: InputSite, source: ir.Value, rotation: np.ndarray) -> ir.Value:
    assert source.shape is not None
    assert source.dtype is not None
    block, leading = len(rotation), [0] * (source.shape.rank() - 1)
    scope, outer = f"{site.name}/input", list(source.shape)[:-1]
    matrix = put.constant(f"{site.rotation}.{source.dtype.short_name()}", rotation.astype(source.dtype.numpy()))
    split = put.constant(f"{site.rotation}.blocks", np.array([*leading, -1, block], np.int64))
    joined = put.constant(f"{site.rotation}.channels", np.array([*leading, -1], np.int64))
    blocks: list[int | str | None] = [*outer, None, block]  # type: ignore[list-item]
    value = put("Reshape", source, split, name=f"{scope}/Split", dtype=source.dtype, shape=blocks)
    value = put("MatMul", value, matrix, name=f"{scope}/Rotate", dtype=source.dtype, shape=blocks)
    return put("Reshape", value, joined, name=f"{scope}/Join", dtype=source.dtype, shape=source.shape)


def _rotate_weight(linear: str, node: ir.Node, rotation: np.ndarray) -> None:
    value = stored_weight(node, linear, "its input cannot be rotated")
    weight = lazy_weight(value)
    rows, columns = weight.shape.numpy()
    block = len(rotation)
    if rows % block:
        raise GraphError(f"{linear} reads {rows} channels, the plan rotates blocks of {block}: make the plan again.")
    value.const_value = weight.changed(
        lambda w: (rotation.T @ w.reshape(rows // block, block, columns)).reshape(rows, columns)
    )
