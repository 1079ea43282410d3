"""Error by layer: every linear's and block's output in the .onnx against the PyTorch model's, on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from spikeexport.calibration.foundation.progress import progress_bar, say
from spikeexport.compare.hooks import module_outputs
from spikeexport.compare.signal import SignalError
from spikeexport.compare.taps import Tap, TapSession, chunk_taps, find_taps
from spikeexport.compare.unscale import folded_producers, output_scales
from spikeexport.graphs.reading import PortableModel, read_portable
from spikeexport.runners.torch_runner import TorchRunner

_CHUNK_BYTES = 128 * 2**20

FIRST_BAD_DROP_DB = 10.0
"""A layer is called bad when its SNR lies this far below everything before it."""

_WARM_UP_TAPS = 3


@dataclass(frozen=True)
class LayerError:
    """Error of one module's output.

    Attributes:
        name: The checkpoint's module path.
        kind: A linear or a whole decoder block.
        snr_db: Signal-to-noise ratio over all tokens.
        cosine: Mean cosine over the tokens.
        quantized: Whether the plan quantises the linear; None for blocks.
    """

    name: str
    kind: Literal["linear", "block"]
    snr_db: float
    cosine: float
    quantized: bool | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "snr_db": round(self.snr_db, 3),
            "cosine": round(self.cosine, 6),
            "quantized": self.quantized,
        }


def compare_layers(onnx: Path, reference: TorchRunner, windows: np.ndarray) -> tuple[LayerError, ...]:
    """Compares inside, a few tensors in memory at a time; errors accumulate from layer to layer as they do in use.

    Both sides see the same tokens, the candidate's prefix included: the reference is run behind it.

    Args:
        onnx: The candidate, written by `export`.
        reference: The original model.
        windows: int64 [N, S] token ids without BOS.

    Raises:
        GraphError: The file cannot be read or run.
    """
    portable = read_portable(onnx)
    prefix_ids = portable.prefix.ids if portable.prefix else ()
    runner = reference.behind(prefix_ids) if prefix_ids else reference
    if runner.bos_id is not None:
        bos = np.full((len(windows), 1), runner.bos_id, dtype=np.int64)
        windows = np.concatenate([bos, windows[:, :-1]], axis=1)
    known = {name for name, _ in reference.model.named_modules()}
    taps = [tap for tap in find_taps(portable.model.graph, portable.linears) if tap.module in known]
    if not taps:
        say(f"{onnx} and {reference.name} share no module names: error by layer is left out.")
        return ()
    return _measure(portable, runner, taps, windows)


def _measure(
    portable: PortableModel, runner: TorchRunner, taps: list[Tap], windows: np.ndarray
) -> tuple[LayerError, ...]:
    scales = output_scales(portable.model.graph, portable.plan, _absmax(runner, folded_producers(portable.plan)))
    errors = {tap.module: SignalError() for tap in taps}
    chunks = list(chunk_taps(taps, windows.shape[1], _CHUNK_BYTES))
    with progress_bar("Error by layer", len(chunks) * len(windows)) as advance:
        for chunk in chunks:
            session = TapSession(portable.path, chunk)
            modules = [tap.module for tap in chunk]
            for window in windows:
                found = session.run(window[None])
                expected = module_outputs(runner, modules, window[None])
                for module in modules:
                    output = found[module].astype(np.float32) * scales.get(module, np.float32(1))
                    errors[module].add(expected[module], output)
                advance()
    quantized = set(portable.plan.quantized_linears) if portable.plan else set()
    return tuple(
        LayerError(
            tap.module,
            tap.kind,
            errors[tap.module].snr_db,
            errors[tap.module].cosine,
            tap.module in quantized if tap.kind == "linear" else None,
        )
        for tap in taps
    )


def _absmax(runner: TorchRunner, modules: tuple[str, ...]) -> dict[str, np.ndarray]:
    layers = dict(runner.model.named_modules())
    return {
        module: layers[module].weight.detach().float().abs().amax(dim=1).cpu().numpy()
        for module in modules
        if module in layers
    }


def first_bad_layer(layers: tuple[LayerError, ...]) -> str | None:
    """Returns the first module whose SNR falls `FIRST_BAD_DROP_DB` below the worst one before it, or None."""
    for index in range(_WARM_UP_TAPS, len(layers)):
        worst_before = min(layer.snr_db for layer in layers[:index])
        if layers[index].snr_db < worst_before - FIRST_BAD_DROP_DB:
            return layers[index].name
    return None
