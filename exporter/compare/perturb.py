"""The same subject with its norms' weights or scales moved by one part in a million: a run of the noise floor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.subject import built_folder, open_subject, subject_kind
from spikeexport.runners.torch_runner import TorchRunner

RELATIVE = 1e-6
"""Size of the perturbation; a type that cannot hold it is moved by its smallest step."""

_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization", "SkipSimplifiedLayerNormalization")


@contextlib.contextmanager
def perturbed(subject: str | Path, runner: CausalRunner) -> Iterator[tuple[CausalRunner, float]]:
    """Yields the subject with the perturbation, and the size that it has.

    Args:
        subject: What `runner` was opened from.
        runner: Open; a PyTorch model is changed while its twin runs, other subjects are opened a second time.

    Raises:
        UsageError: The subject is of a kind whose weights cannot be changed.
    """
    if isinstance(runner, TorchRunner):
        yield _MovedTwin(runner), RELATIVE
        return
    values = _float_vectors(_graph_file(subject))
    relative = max(_step(value) for value in values.values())
    with _reopened(subject, {name: moved(value, seed) for seed, (name, value) in enumerate(values.items())}) as other:
        yield other, relative


def moved(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns each value times (1 ± RELATIVE), the signs drawn; at least one step of the type."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=values.shape)
    return np.asarray(values.astype(np.float64) * (1 + _step(values) * signs), dtype=values.dtype)


def _step(values: np.ndarray) -> float:
    return max(RELATIVE, float(np.finfo(values.dtype).eps))


class _MovedTwin(CausalRunner):
    """A PyTorch model whose norms are moved during each call and put back behind it."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self._weights = [value for name, value in runner.model.named_parameters() if _is_norm(name, value)]
        self.name, self.tokenizer, self.vocab_size = f"{runner.name} (moved)", runner.tokenizer, runner.vocab_size
        self.prefix_ids, self.prefix_logits = runner.prefix_ids, runner.prefix_logits
        self.bos_id, self.eos_ids = runner.bos_id, runner.eos_ids
        self.max_positions, self.max_batch = runner.max_positions, runner.max_batch

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Runs the moved model; see `CausalRunner.prefill`."""
        with self._moved():
            return self._runner.prefill(ids, attention_mask, last_only=last_only)

    def decode(self, ids: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """Runs the moved model on; see `CausalRunner.decode`."""
        with self._moved():
            return self._runner.decode(ids, cache)

    @contextlib.contextmanager
    def _moved(self) -> Iterator[None]:
        import torch

        kept = [weight.data for weight in self._weights]
        try:
            for seed, weight in enumerate(self._weights):
                weight.data = torch.from_numpy(moved(weight.float().numpy(), seed)).to(weight.dtype)
            yield
        finally:
            for weight, data in zip(self._weights, kept, strict=True):
                weight.data = data


def _is_norm(name: str, value: Any) -> bool:
    return value.ndim == 1 and name.endswith(".weight")


def _graph_file(subject: str | Path) -> Path:
    if subject_kind(subject) == "onnx":
        return Path(subject)
    from spikeexport.backends.manifest import load_manifest
    from spikeexport.backends.onnxruntime.backend import MODEL_NAME

    folder = built_folder(subject)
    if load_manifest(folder).backend != "onnxruntime":
        raise UsageError(f"--noise: the weights of {folder} are compiled in; measure its .onnx in its place.")
    return folder / MODEL_NAME


def _float_vectors(path: Path) -> dict[str, np.ndarray]:
    """Returns a graph's float32 norms by name; in an FP16 graph its activation scales, or else its FP16 norms.

    What moves should be float32: one step of FP16 is a thousand times more than one part in a million.
    """
    import onnx_ir as ir

    norms: dict[str, np.ndarray] = {}
    scales: dict[str, np.ndarray] = {}
    for node in ir.load(path).graph:
        if node.op_type in _NORMS:
            norms.update(_constants(node.inputs[1:], rank=1))
        elif node.op_type == "QuantizeLinear":
            scales.update(_constants(node.inputs[1:2], rank=0))
    for found in (norms, scales):
        wide = {name: value for name, value in found.items() if value.dtype == np.float32}
        if wide:
            return wide
    if not norms:
        raise UsageError(f"--noise: {path} has no norm and no scale that could be moved.")
    return norms


def _constants(values: Any, rank: int) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for value in values:
        constant = value.const_value if value is not None and value.is_initializer() else None
        if constant is not None and len(constant.shape) == rank:
            found[str(value.name)] = constant.numpy()
    return found


def _reopened(subject: str | Path, initializers: dict[str, np.ndarray]) -> Any:
    if subject_kind(subject) == "built":
        return open_subject(subject, initializers=initializers)
    from spikeexport.runners.ort_session import SessionSettings

    return open_subject(subject, settings=SessionSettings(initializers=initializers))
