"""`spikeexport build`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.defaults import MIN_INT8_COVERAGE


class BackendName(str, Enum):
    """Where the model is to run."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class DecodeName(str, Enum):
    """How single tokens run."""

    int8 = "int8"
    weight_only = "weight-only"


def run(
    source: Annotated[
        str,
        typer.Argument(metavar="ONNX", help="An .onnx that `export` wrote; a MODEL is exported with defaults first."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Folder to write.  [default: <stem>.<backend>]"),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option("--backend", help="auto = TensorRT where a GPU and TensorRT answer.")
    ] = BackendName.auto,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option("--compute-capability", metavar="8.9", help="GPU to build ahead of time for. Repeatable."),
    ] = None,
    max_batch: Annotated[int | None, typer.Option("--max-batch", metavar="N", help="Largest batch.")] = None,
    max_seq: Annotated[int | None, typer.Option("--max-seq", metavar="N", help="Most tokens, cache included.")] = None,
    min_int8_coverage: Annotated[
        float, typer.Option("--min-int8-coverage", metavar="SHARE", help="Fail when fewer planned linears are INT8.")
    ] = MIN_INT8_COVERAGE,
    workspace: Annotated[
        int | None, typer.Option("--workspace", metavar="MIB", min=1, help="Most scratch memory of one kernel.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="PASS", help="onnxruntime: leave a lowering pass out. Repeatable."),
    ] = None,
    decode: Annotated[
        DecodeName,
        typer.Option("--decode", help="onnxruntime: how single tokens run; weight-only takes 1.4 x the memory."),
    ] = DecodeName.int8,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", metavar="FILE", help="Kernel timings to read and extend.")
    ] = None,
) -> Answer:
    """Compile for one backend and check which linears really run in INT8."""
    from spikeexport.build import build
    from spikeexport.cli.tables import built_table

    limits = {} if max_batch is None else {"max_batch": max_batch}
    result = build(
        source,
        output,
        backend=backend.value,
        compute_capabilities=tuple(compute_capability or ()),
        max_seq=max_seq,
        min_int8_coverage=min_int8_coverage,
        timing_cache=timing_cache,
        workspace_bytes=workspace << 20 if workspace is not None else None,
        without=tuple(without or ()),
        decode=decode.value,
        **limits,
    )
    data = result.to_json()
    return Answer(data, built_table(data))
