"""Error by layer: every linear's and block's output in the candidate against the PyTorch model's, on the same tokens.

Twice: as the errors add up from layer to layer in use, and each linear alone on the original's own input, where nothing
adds up and a fault shows in the one linear that has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.foundation.progress import progress_bar, say
from spikeexport.compare.alone import linear_source, linears_alone
from spikeexport.compare.hooks import module_inputs, module_outputs
from spikeexport.compare.signal import SignalError
from spikeexport.compare.site_spikes import SiteSpikes, SpikeText, site_spikes, spike_text
from spikeexport.compare.taps import Tap, TapSession, chunk_taps, find_taps
from spikeexport.compare.unscale import fold_scales
from spikeexport.graphs.reading import PortableModel, read_portable
from spikeexport.runners.fakequant_runner import FakeQuantRunner
from spikeexport.runners.torch_runner import TorchRunner

_CHUNK_BYTES = 128 * 2**20

FIRST_BAD_DROP_DB = 10.0
"""A layer is called bad when its SNR lies this far below everything before it."""

ALONE_DROP_DB = 15.0
"""A linear is called bad when its SNR alone lies this far below the median of its kind."""

_WARM_UP_TAPS = 3
_KIN = 3


@dataclass(frozen=True)
class LayerError:
    """Error of one module's output.

    Attributes:
        name: The checkpoint's module path.
        kind: A linear or a whole decoder block.
        snr_db: Signal-to-noise ratio over all tokens, the errors of everything before it included.
        cosine: Mean cosine over the tokens.
        quantized: Whether the plan quantises the linear; None for blocks.
        alone_snr_db: The same of a linear alone on the original's input; None where it was not measured.
        alone_cosine: Its cosine.
    """

    name: str
    kind: Literal["linear", "block"]
    snr_db: float
    cosine: float
    quantized: bool | None
    alone_snr_db: float | None = None
    alone_cosine: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "snr_db": round(self.snr_db, 3),
            "cosine": round(self.cosine, 6),
            "quantized": self.quantized,
            "alone_snr_db": None if self.alone_snr_db is None else round(self.alone_snr_db, 3),
            "alone_cosine": None if self.alone_cosine is None else round(self.alone_cosine, 6),
        }


@dataclass(frozen=True)
class Inside:
    """What looking inside found.

    Attributes:
        layers: Error by layer, in the order in which they run.
        spikes: Spikes at the inputs of the linears, before and after.
        spike_text: A window's tokens with the spikes that they carry; None where they were not measured.
    """

    layers: tuple[LayerError, ...] = ()
    spikes: tuple[SiteSpikes, ...] = ()
    spike_text: SpikeText | None = None


def compare_layers(onnx: Path, reference: TorchRunner, windows: np.ndarray) -> Inside:
    """Compares inside an .onnx, a few tensors in memory at a time.

    Both sides see the same tokens, the candidate's prefix included: the reference is run behind it.

    Args:
        onnx: The candidate, written by `export`.
        reference: The original model.
        windows: int64 [N, S] token ids without BOS.

    Raises:
        GraphError: The file cannot be read or run.
    """
    portable = read_portable(onnx)
    runner = _behind(reference, portable.prefix.ids if portable.prefix else ())
    fed = fed_windows(runner, windows)
    known = {name for name, _ in reference.model.named_modules()}
    taps = [tap for tap in find_taps(portable.model.graph, portable.linears) if tap.module in known]
    if not taps:
        say(f"{onnx} and {reference.name} share no module names: error by layer is left out.")
        return Inside()
    scales = fold_scales(portable.model.graph, portable.plan, reference.model)
    quantized = frozenset(portable.plan.quantized_linears)
    layers = _added_up(taps, _onnx_reader(portable), runner, fed, scales.outputs, quantized)
    alone = linears_alone(portable, runner, taps, fed, scales)
    layers = tuple(_with_alone(layer, alone.get(layer.name)) for layer in layers)
    return Inside(layers, *_spikes(portable, taps, reference, windows, fed))


def compare_modules(candidate: TorchRunner, reference: TorchRunner, windows: np.ndarray) -> Inside:
    """Compares inside two PyTorch models (one of them fake-quantised, for instance), as errors add up.

    Args:
        candidate: What is judged.
        reference: The original model.
        windows: int64 [N, S] token ids without BOS.
    """
    from spikeexport.calibration.structure.sites import discover

    runner = _behind(reference, candidate.prefix_ids)
    fed = fed_windows(runner, windows)
    try:
        structure = discover(reference.model)
    except CheckpointError as error:
        say(f"Error by layer is left out: {error}", level=1)
        return Inside()
    own = {name for name, _ in candidate.model.named_modules()}
    taps: list[Tap] = []
    for layer in structure.layers:
        inside = [linear for linear in structure.linears if linear.startswith(f"{layer}.")]
        widths = [int(reference.model.get_submodule(linear).weight.shape[0]) for linear in inside]
        taps += [Tap(name, "linear", "", width, 0) for name, width in zip(inside, widths, strict=True) if name in own]
        taps.append(Tap(layer, "block", "", widths[-1], 0))
    scales: dict[str, np.ndarray] = {}
    quantized: frozenset[str] = frozenset()
    if isinstance(candidate, FakeQuantRunner):
        quantized = frozenset(candidate.plan.quantized_linears)
        divided = [fold for fold in candidate.plan.folds if fold.kind != "norm"]
        scales = {fold.producer: candidate.fold_tensors[fold.scales] for fold in divided}

    def reader(chunk: Sequence[Tap]) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        return lambda ids: module_outputs(candidate, [tap.module for tap in chunk], ids)

    return Inside(_added_up(taps, reader, runner, fed, scales, quantized))


def fed_windows(runner: TorchRunner, windows: np.ndarray) -> np.ndarray:
    """Returns windows [N, S] as the runner is fed them: BOS in front where it has one, the length unchanged."""
    if runner.bos_id is None:
        return windows
    bos = np.full((len(windows), 1), runner.bos_id, dtype=np.int64)
    return np.concatenate([bos, windows[:, :-1]], axis=1)


def _behind(reference: TorchRunner, prefix_ids: tuple[int, ...]) -> TorchRunner:
    return reference.behind(prefix_ids) if prefix_ids else reference


def _onnx_reader(
    portable: PortableModel,
) -> Callable[[Sequence[Tap]], Callable[[np.ndarray], Mapping[str, np.ndarray]]]:
    return lambda chunk: TapSession(portable.path, chunk).run


def _added_up(
    taps: Sequence[Tap],
    reader: Callable[[Sequence[Tap]], Callable[[np.ndarray], Mapping[str, np.ndarray]]],
    runner: TorchRunner,
    windows: np.ndarray,
    scales: Mapping[str, np.ndarray],
    quantized: frozenset[str],
) -> tuple[LayerError, ...]:
    """Compares the outputs of `taps` as both sides run from the start."""
    errors = {tap.module: SignalError() for tap in taps}
    chunks = list(chunk_taps(taps, windows.shape[1], _CHUNK_BYTES))
    with progress_bar("Error by layer", len(chunks) * len(windows)) as advance:
        for chunk in chunks:
            read = reader(chunk)
            for window in windows:
                expected = module_outputs(runner, [tap.module for tap in chunk], window[None])
                for module, output in read(window[None]).items():
                    # An expert that saw no token, or only those routed to it, has nothing to be compared with.
                    if module in expected and expected[module].shape == output.shape:
                        scaled = output.astype(np.float32) * scales.get(module, np.float32(1))
                        errors[module].add(expected[module], scaled)
                advance()
    return tuple(
        LayerError(
            tap.module,
            tap.kind,
            errors[tap.module].snr_db,
            errors[tap.module].cosine,
            tap.module in quantized if tap.kind == "linear" else None,
        )
        for tap in taps
        if errors[tap.module].rows
    )


def _with_alone(layer: LayerError, error: SignalError | None) -> LayerError:
    if error is None:
        return layer
    return replace(layer, alone_snr_db=error.snr_db, alone_cosine=error.cosine)


def _spikes(
    portable: PortableModel, taps: Sequence[Tap], reference: TorchRunner, windows: np.ndarray, fed: np.ndarray
) -> tuple[tuple[SiteSpikes, ...], SpikeText | None]:
    """Measures the inputs of the linears in the original behind BOS, and in the candidate."""
    values = {str(value.name): value for node in portable.model.graph for value in node.outputs}
    sources: dict[str, Tap] = {}
    for tap in taps:
        if tap.kind == "linear":
            source = linear_source(values[tap.value])
            sources.setdefault(str(source.name), replace(tap, value=str(source.name)))
    sites = [tap.module for tap in sources.values()]

    def original(ids: np.ndarray) -> Mapping[str, np.ndarray]:
        return module_inputs(reference, sites, ids)

    candidate = TapSession(portable.path, list(sources.values())).run
    own = fed_windows(reference, windows)[:1]
    spikes, absmax = site_spikes(sites, (original, own), (candidate, fed[:1]))
    return spikes, spike_text(spikes, absmax, own[0], reference.tokenizer)


def first_bad_layer(layers: Sequence[LayerError]) -> str | None:
    """Returns the first module that is bad by itself, or else the first behind which the errors grow suddenly.

    By itself: a linear whose SNR alone lies `ALONE_DROP_DB` below the median of the quantised linears of its name
    (of all of them where its name is rare).
    Suddenly: an SNR `FIRST_BAD_DROP_DB` below the worst one before it.
    """
    alone = bad_alone(layers)
    if alone:
        return alone[0]
    for index in range(_WARM_UP_TAPS, len(layers)):
        worst_before = min(layer.snr_db for layer in layers[:index])
        if layers[index].snr_db < worst_before - FIRST_BAD_DROP_DB:
            return layers[index].name
    return None


def bad_alone(layers: Sequence[LayerError]) -> tuple[str, ...]:
    """Returns the linears that are bad by themselves, in order."""
    kin: dict[str, list[float]] = defaultdict(list)
    for layer in layers:
        if layer.alone_snr_db is not None and layer.quantized:
            kin[_leaf(layer.name)].append(layer.alone_snr_db)
    if not kin:
        return ()
    everywhere = median([snr for found in kin.values() for snr in found])
    usual = {leaf: median(found) if len(found) >= _KIN else everywhere for leaf, found in kin.items()}
    return tuple(
        layer.name
        for layer in layers
        if layer.alone_snr_db is not None
        and layer.alone_snr_db < usual.get(_leaf(layer.name), everywhere) - ALONE_DROP_DB
    )


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]
