"""Builds the portable graph of a plan, checks it against PyTorch and writes it with its assets."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spikeexport.assets_folder import assets_name, write_assets
from spikeexport.calibration.foundation.files import staged_outputs
from spikeexport.calibration.foundation.progress import say, warn
from spikeexport.calibration.records.plan import Plan, PlanTensors
from spikeexport.graphs.passes.linears import decoder_matmuls
from spikeexport.graphs.portable import Dtype, build_unquantised, quantise
from spikeexport.graphs.saving import data_name, save_model
from spikeexport.parity import Parity, check_parity
from spikeexport.runners.prefix_logits import logits_behind, write_prefix_logits

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from spikeexport.calibration.checkpoint import Checkpoint


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        linears: Number of decoder linears in the graph.
        parity: How far the unquantised graph was from PyTorch.
        size_bytes: Of the .onnx and its data.
    """

    linears: int
    parity: Parity
    size_bytes: int


def write_portable(
    checkpoint: Checkpoint,
    plan: Plan,
    tensors: PlanTensors,
    output: Path,
    *,
    dtype: Dtype = "fp16",
    lm_head: Literal["fp", "int8"] = "fp",
) -> Written:
    """Writes `output`, its data file and its assets folder; all appear together, the .onnx last.

    Args:
        checkpoint: The model.
        plan: What was decided.
        tensors: The plan's vectors.
        output: The .onnx.
        dtype: Floating-point type of the graph.
        lm_head: "int8" stores the output head as INT8 weights.

    Raises:
        GraphError: The unquantised graph differs from PyTorch, or plan and model do not match.
        SpikeExportError: The file system refused. Nothing is left under the final names.
    """
    from spikeexport.calibration.largest_value import fp16_warning

    if dtype == "fp16" and (warning := fp16_warning(plan.largest_activation)):
        warn(warning)
    graph, parity, prefix_logits = checked_graph(checkpoint, plan, tensors, dtype)
    quantise(graph, plan, lm_head, tensors)
    data, assets = output.with_name(data_name(output.name)), output.with_name(assets_name(output.name))
    with staged_outputs(data, assets, output) as staging:
        write_assets(checkpoint, staging / assets.name, plan.prefix)
        if prefix_logits is not None:
            write_prefix_logits(staging / assets.name, prefix_logits)
        save_model(graph, staging / output.name)
    say(f"Wrote {output}")
    return Written(len(decoder_matmuls(graph.graph)), parity, output.stat().st_size + data.stat().st_size)


def checked_graph(
    checkpoint: Checkpoint, plan: Plan, tensors: PlanTensors, dtype: Dtype
) -> tuple[ir.Model, Parity, np.ndarray | None]:
    """Builds the unquantised graph of a plan in `dtype`, after its float32 form was found equal to PyTorch.

    Returns:
        The graph, how far it was from PyTorch, and PyTorch's logits float32 [V] behind the prefix (None without one).

    Raises:
        GraphError: It was not, or plan and model do not match.
    """
    from spikeexport.calibration.prefix_cache import prefix_arrays
    from spikeexport.reference import load_reference

    reference = load_reference(checkpoint)
    ids = plan.prefix.ids if plan.prefix else ()
    prefix = prefix_arrays(reference, ids, plan.folds, tensors)
    graph = build_unquantised(checkpoint, plan, tensors, prefix, "fp32")
    parity = check_parity(checkpoint, reference, graph, ids)
    say(f"The unquantised graph is PyTorch's within {parity.max_difference:.2g} (allowed {parity.limit:.2g})", level=1)
    prefix_logits = logits_behind(reference, ids)
    del reference
    gc.collect()
    if dtype == "fp32":
        return graph, parity, prefix_logits
    return build_unquantised(checkpoint, plan, tensors, prefix, dtype), parity, prefix_logits
