"""The windows as inputs for `polygraphy run --load-inputs`: the same tokens for any runner of the same graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from spikeexport.backends.tensorrt.polygraphy_compare import prompt_feeds
from spikeexport.calibration.foundation.errors import GraphError
from spikeexport.calibration.foundation.files import staged_outputs

_CACHE_DTYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16, ir.DataType.INT8: np.int8}


def save_inputs(onnx: Path, windows: np.ndarray, bos_id: int | None, path: Path) -> None:
    """Writes one iteration of inputs for each window.

    Args:
        onnx: The portable .onnx whose inputs they are.
        windows: int64 [N, S] token ids without BOS.
        bos_id: Token in front of each, or None.
        path: Where to, JSON of Polygraphy.

    Raises:
        GraphError: The cache is of a type that numpy does not know.
        SpikeExportError: The file system refused.
    """
    from polygraphy.json import save_json

    inputs = {str(value.name): value for value in ir.load(onnx).graph.inputs}
    past = [value for name, value in inputs.items() if name.startswith("past_key_values.")]
    dtype = _CACHE_DTYPES.get(past[0].dtype) if past and past[0].dtype else np.float32
    if dtype is None:
        raise GraphError(f"{onnx} keeps its cache as {past[0].dtype}: export with --dtype fp16 or fp32 to save inputs.")
    shapes = {name: tuple(_axis(axis) for axis in value.shape or ()) for name, value in inputs.items()}
    feeds = [prompt_feeds(shapes, fed_ids(window, bos_id)[None], np.dtype(dtype)) for window in windows]
    known = [{name: array for name, array in feed.items() if name in inputs} for feed in feeds]
    with staged_outputs(path) as staging:
        save_json(known, str(staging / path.name))


def fed_ids(window: np.ndarray, bos_id: int | None) -> np.ndarray:
    """Returns what predicts a window int64 [S]: BOS and all but its last token."""
    lead = [] if bos_id is None else [bos_id]
    return np.concatenate([np.asarray(lead, np.int64), window[:-1]])


def _axis(axis: object) -> int | str:
    return axis if isinstance(axis, int) else str(axis)
