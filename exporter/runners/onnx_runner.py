"""The portable .onnx run as it is: one ONNX Runtime session, KV cache through past and present."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from spikeexport.calibration.foundation.errors import GraphError, SpikeExportError
from spikeexport.calibration.foundation.progress import warn
from spikeexport.runners.assets import Assets
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.ort_session import SessionSettings, import_onnxruntime, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


@dataclass(frozen=True)
class OnnxCache:
    """The state behind the tokens seen so far.

    Attributes:
        past: ONNX Runtime values [B, kv_heads, past, D], in the order of the graph's past inputs.
        mask: int64 [B, past], 0 on padding.
    """

    past: tuple[Any, ...]
    mask: np.ndarray


class OnnxRunner(CausalRunner):
    """Runs a graph with the inputs and outputs of a usual decoder export.

    With "basic" optimisation Q/DQ run in exact floating point, which is what the file says; the default options of ONNX
    Runtime turn s8 x s8 into integer kernels that are 6 to 9 x slower than the lowered form.
    """

    def __init__(
        self,
        path: Path,
        assets: Assets,
        settings: SessionSettings | None = None,
        optimization: Literal["basic", "all"] = "basic",
    ) -> None:
        """Opens `path`.

        Raises:
            BackendError: ONNX Runtime refuses the file.
            GraphError: The graph has other inputs or outputs than a decoder, or a KV cache that numpy does not know.
        """
        self._session = open_session(path, settings or SessionSettings(), optimization)
        self._path = path
        self._read_signature()
        self.name = path.name
        self.assets = assets
        self.prefix_ids = assets.prefix_ids
        self.eos_ids = assets.eos_ids
        self.max_positions = assets.max_positions
        self.vocab_size = assets.vocab_size
        self.max_batch = None
        self.prefix_logits = assets.prefix_logits

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The tokenizer that was written beside the file."""
        return self.assets.tokenizer

    @property
    def bos_id(self) -> int | None:  # type: ignore[override]
        """The id to put before a text, or None."""
        return self.assets.bos_id

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, OnnxCache]:
        """Runs sequences from the start; see `CausalRunner.prefill`."""
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int64)
        logits, cache = self._step(ids, OnnxCache(self._empty_past(len(ids)), mask[:, :0]), mask, last_only)
        return (logits[:, -1:] if last_only else logits), cache

    def decode(self, ids: np.ndarray, cache: OnnxCache) -> tuple[np.ndarray, OnnxCache]:
        """Runs more tokens behind the cache; see `CausalRunner.decode`."""
        return self._step(ids, cache, np.ones_like(ids), False)

    def close(self) -> None:
        """Releases the session."""
        self._session = None

    def _step(
        self, ids: np.ndarray, cache: OnnxCache, mask: np.ndarray, last_only: bool
    ) -> tuple[np.ndarray, OnnxCache]:
        full = np.concatenate([cache.mask, mask], axis=1)
        positions = np.maximum(full.cumsum(axis=1) - 1, 0)[:, cache.mask.shape[1] :]
        kept = np.arange(ids.shape[1] - 1 if last_only else 0, ids.shape[1])
        feeds = {"input_ids": ids, "attention_mask": full, "position_ids": positions, "logits_positions": kept}
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if name in self._plain_inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(array, np.int64))
        for name, value in zip(self._past_names, cache.past, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in ("logits", *self._present_names):
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return logits.numpy().astype(np.float32, copy=False), OnnxCache(tuple(present), full)

    def _read_signature(self) -> None:
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        self._past_names = [name for name in inputs if name.startswith("past_key_values.")]
        self._present_names = [name.replace("past_key_values.", "present.") for name in self._past_names]
        self._plain_inputs = frozenset(inputs) - frozenset(self._past_names)
        missing = {"input_ids", "attention_mask"} - set(inputs) | {"logits", *self._present_names} - set(outputs)
        if missing or not self._past_names:
            raise GraphError(
                f"{self._path} is no decoder with a KV cache (missing: {', '.join(sorted(missing)) or 'past inputs'}): "
                "give a file that `spikeexport export` wrote."
            )
        self._past_shapes = [inputs[name].shape for name in self._past_names]
        type_name = inputs[self._past_names[0]].type
        if type_name not in _NUMPY:
            raise GraphError(
                f"{self._path} keeps its KV cache as {type_name}, which ONNX Runtime does not compute on a CPU: "
                "build it (`spikeexport build --backend onnxruntime`), or export with --dtype fp16 or fp32."
            )
        self._past_dtype = _NUMPY[type_name]

    def _empty_past(self, batch: int) -> tuple[Any, ...]:
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy
        return tuple(make(np.zeros((batch, heads, 0, dim), self._past_dtype)) for _, heads, _, dim in self._past_shapes)


def open_onnx_runner(path: Path, *, settings: SessionSettings | None = None) -> OnnxRunner:
    """Opens an .onnx file that `export` wrote, with the assets beside it.

    A BF16 file has no kernels on a CPU: it is computed in FP32 with its own rounded weights, from a temporary copy.

    Raises:
        SpikeExportError: The file, its data or its assets are missing or damaged.
    """
    import onnx_ir as ir
    from spikeexport.graphs.reading import read_portable

    portable = read_portable(path)
    assets = Assets(assets_folder(path), portable.prefix.ids if portable.prefix is not None else ())
    if not any(value.dtype == ir.DataType.BFLOAT16 for value in portable.model.graph.outputs):
        # Without Q/DQ there is nothing that fusing could round otherwise.
        return OnnxRunner(path, assets, settings, "all" if portable.plan.weights == "fp" else "basic")
    warn(f"{path.name} is BF16, which a CPU does not compute: it runs in FP32 with the same weights.")
    return _open_widened(path, portable.model, assets, settings)


def _open_widened(path: Path, model: ir.Model, assets: Assets, settings: SessionSettings | None) -> OnnxRunner:
    from spikeexport.graphs.onnxruntime.float32 import CastToFloat32
    from spikeexport.graphs.saving import save_model

    CastToFloat32()(model)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        save_model(model, copy)
        return OnnxRunner(copy, assets, settings)


def assets_folder(path: Path) -> Path:
    """Returns the folder of assets beside an .onnx file.

    Raises:
        SpikeExportError: There is none.
    """
    folder = path.with_name(f"{path.stem}.assets")
    for candidate in (folder, path.parent):
        if (candidate / "config.json").is_file():
            return candidate
    raise SpikeExportError(
        f"{folder} is missing: the tokenizer lies there; copy it beside {path.name} or export again."
    )
