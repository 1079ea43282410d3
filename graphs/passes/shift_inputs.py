"""Takes a vector off a quantised input and gives it back in the bias of the linears that read it (OutlierTune)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.records.plan import InputSite, PlanTensors
from spikeexport.graphs.passes.linears import stored_weight
from spikeexport.graphs.passes.quantize_weights import dequantised
from spikeexport.graphs.passes.site_readers import SiteFinder, SiteReaders
from spikeexport.graphs.weights import LazyWeight, lazy_weight, set_weight


class ShiftInputs(ir.passes.InPlacePass):
    """x W + b -> (x - z) W + (b + z W), which is the same function with an input that is centred on zero.

    One Sub per site, in front of where its Q/DQ pair goes. A bias that the linear has takes z W up; else an Add with a
    bias of its own follows. Where W will be INT8, z W is computed from the dequantised W: rounding errors of the weight
    would otherwise stay behind as a constant, z times as large.
    """

    def __init__(
        self,
        sites: Sequence[InputSite],
        tensors: PlanTensors,
        int8: Collection[str] = (),
        rounded: PlanTensors | None = None,
    ) -> None:
        """Takes the plan's sites, of which those with a shift are changed, and what `QuantizeWeights` will be given.

        Args:
            sites: Of the plan.
            tensors: Of the plan; shifts are there.
            int8: Module paths of the linears whose weight will be INT8.
            rounded: Holds their codes and scales; None = the nearest codes.
        """
        self._sites = [site for site in sites if site.shift is not None]
        self._tensors = tensors
        self._int8 = frozenset(int8)
        self._rounded = rounded

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place; must run before weights are quantised.

        Raises:
            GraphError: A linear is not in the graph, or the shift has another length than its input.
        """
        finder = SiteFinder(model.graph)
        pending = [site for site in self._sites if f"{site.name}.input_shift" not in model.graph.initializers]
        for site in pending:
            self._shift(model.graph, finder.readers(site, "shifts"), site)
        return ir.passes.PassResult(model, modified=bool(pending))

    def _shift(self, graph: ir.Graph, readers: SiteReaders, site: InputSite) -> None:
        shift = self._tensors[str(site.shift)].astype(np.float32)
        source = readers.source
        assert source.dtype is not None
        for linear, node in zip(site.linears, readers.nodes, strict=True):
            self._add_to_bias(graph, node, linear, shift)
        z = set_weight(graph, LazyWeight(f"{site.name}.input_shift", lambda: shift, shift.shape, source.dtype))
        name = f"{site.name}/input/Sub"
        readers.read(readers.put("Sub", source, z, name=name, dtype=source.dtype, shape=source.shape))

    def _add_to_bias(self, graph: ir.Graph, node: ir.Node, linear: str, shift: np.ndarray) -> None:
        weight = lazy_weight(stored_weight(node, linear, "its input cannot be shifted"))
        rows, columns = weight.shape.numpy()
        if rows != len(shift):
            raise GraphError(f"{linear} reads {rows} channels, the plan's shift has {len(shift)}: make the plan again.")

        read = weight.read_float32
        if linear in self._int8:
            read = functools.partial(dequantised, linear, weight, self._rounded)

        def moved() -> np.ndarray:
            return (shift.astype(np.float64) @ read().astype(np.float64)).astype(np.float32)

        bias = graph.initializers.get(f"{linear}.bias")
        if bias is not None:
            bias.const_value = lazy_weight(bias).changed(lambda b: b + moved())
            return
        output = node.outputs[0]
        added = set_weight(graph, LazyWeight(f"{linear}.bias", moved, (columns,), weight.dtype))
        add = ir.node("Add", [output, added], name=f"{linear}/Add")
        graph.insert_after(node, add)
        add.outputs[0].name, add.outputs[0].shape = f"{linear}/Add/output", output.shape
        add.outputs[0].type = output.type
        for reader, index in list(output.uses()):
            if reader is not add:
                reader.replace_input_with(index, add.outputs[0])
