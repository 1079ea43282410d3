"""Compares the unquantised graph with PyTorch on a short text, before anything gets its final name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from spikeexport.calibration.foundation.errors import CheckpointError, GraphError
from spikeexport.streamed_graph import Arrays, Request, Segment, StreamedGraph

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint
    from torch import nn

TEXT = (
    "The lighthouse keeper wrote down the weather every evening: wind from the north-west, 12 knots, a falling "
    "barometer.\nIn 1907 a storm took the roof, and for three weeks nobody could cross the bay. What he did then, "
    'the letters do not say; "we managed", is all.'
)
"""Plain English with digits, quotes and a line break, as any tokenizer of a language model splits it."""

TOKENS = 40
DECODED = 2
PADDING = 5
LIMIT = 1e-3
_LOGITS_AT_LIMIT = 30.0


@dataclass(frozen=True)
class Parity:
    """How far the graph was from PyTorch.

    Attributes:
        max_difference: Largest absolute difference of any logit.
        limit: What was allowed.
        tokens: Tokens compared.
    """

    max_difference: float
    limit: float
    tokens: int


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes for the text behind the prefix.

    Attributes:
        ids: int64 [L], without the prefix.
        logits: float32 [L, vocabulary].
        hidden: Per decoder layer its output, float32 [L, hidden].
    """

    ids: np.ndarray
    logits: np.ndarray
    hidden: tuple[np.ndarray, ...]


def check_parity(
    checkpoint: Checkpoint, reference_model: nn.Module, graph: ir.Model, prefix: tuple[int, ...]
) -> Parity:
    """Runs prefill, decoding through the KV cache and a left-padded batch, and compares every logit with PyTorch.

    Args:
        checkpoint: For tokenizer and BOS.
        reference_model: The model as Hugging Face has it, unfolded, computing in float32.
        graph: The unquantised float32 graph, folds and prefix included.
        prefix: Ids of the baked prefix; PyTorch gets them in front of the text.

    Raises:
        GraphError: A logit differs by more than 1e-3 (more where logits exceed 30); the message says by how much, in
            which call, and in which layer it starts.
    """
    reference = run_reference(reference_model, parity_ids(checkpoint, prefix), prefix)
    requests = make_requests(graph, reference.ids)
    layers = [_LayerDifference() for _ in reference.hidden]
    outputs: list[Arrays] = []
    for segment, values in StreamedGraph(graph).run(requests):
        outputs = values
        if 0 <= segment.layer < len(layers):
            layers[segment.layer].look(segment, values[0], reference.hidden[segment.layer])
    return _judge(reference, [values["logits"] for values in outputs], layers)


def parity_ids(checkpoint: Checkpoint, prefix: tuple[int, ...]) -> np.ndarray:
    """Returns the ids of the parity text, BOS in front where the model wants one and no prefix stands there.

    Raises:
        CheckpointError: The tokenizer makes too few tokens of the model's vocabulary out of English text.
    """
    from spikeexport.calibration.checkpoint import bos_id

    vocabulary = checkpoint.config.get_text_config().vocab_size
    ids = [id for id in checkpoint.tokenizer()(TEXT, add_special_tokens=False).input_ids if id < vocabulary]
    bos = None if prefix else bos_id(checkpoint)
    ids = ([] if bos is None else [bos]) + ids[: TOKENS + DECODED]
    if len(ids) <= DECODED + PADDING:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer makes {len(ids)} usable tokens of a plain English text: tokenizer and "
            f"model (vocabulary {vocabulary}) do not belong together."
        )
    return np.array(ids, np.int64)


def run_reference(model: nn.Module, ids: np.ndarray, prefix: tuple[int, ...]) -> Reference:
    """Runs PyTorch once over prefix and text; a causal model's logits in one pass are those of any call."""
    import torch
    from spikeexport.calibration.structure.sites import decoder_layers

    hidden: dict[str, np.ndarray] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(_keep_output(hidden, path, len(prefix)))
        for path in decoder_layers(model)
    ]
    try:
        with torch.inference_mode():
            row = torch.from_numpy(np.concatenate([np.array(prefix, np.int64), ids])[None])
            logits = model(input_ids=row, use_cache=False).logits[0, len(prefix) :].float().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return Reference(ids, logits, tuple(hidden.values()))


def make_requests(graph: ir.Model, ids: np.ndarray) -> list[Request]:
    """Returns the calls: prefill, `DECODED` single tokens behind it, and a batch of two, one row padded on the left.

    The padded row holds the text's beginning, so that its logits are those of the text.
    """
    prefill = len(ids) - DECODED
    requests = [_request(graph, ids[None, :prefill], np.ones((1, prefill), np.int64))]
    for step in range(DECODED):
        position = prefill + step
        mask = np.ones((1, position + 1), np.int64)
        requests.append(_request(graph, ids[None, position : position + 1], mask, past_from=step))
    rows = np.stack([np.concatenate([np.repeat(ids[-1:], PADDING), ids[:-PADDING]]), ids])
    mask = np.ones_like(rows)
    mask[0, :PADDING] = 0
    return [*requests, _request(graph, rows, mask)]


def _request(graph: ir.Model, ids: np.ndarray, mask: np.ndarray, past_from: int | None = None) -> Request:
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for value in graph.graph.inputs:
        if past_from is None and str(value.name).startswith("past_key_values."):
            assert value.shape is not None
            assert value.dtype is not None
            empty = (len(ids), value.shape[1], 0, value.shape[3])
            inputs[str(value.name)] = np.zeros(empty, value.dtype.numpy())  # type: ignore[arg-type]
    return Request(inputs, past_from)


def _keep_output(hidden: dict[str, np.ndarray], path: str, skip: int) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        hidden[path] = state[0, skip:].float().numpy()

    return keep


class _LayerDifference:
    """Smallest relative difference between a layer's output in PyTorch and any value that leaves it in the graph."""

    def __init__(self) -> None:
        self.relative = float("inf")

    def look(self, segment: Segment, values: Arrays, expected: np.ndarray) -> None:
        for name in segment.outputs:
            found = values[name]
            if found.ndim == 3 and found.shape[0] == 1 and found.shape[2] == expected.shape[1]:
                wanted = expected[: found.shape[1]]
                difference = float(np.abs(found[0] - wanted).max()) if found.shape[1] <= len(expected) else np.inf
                self.relative = min(self.relative, difference / max(1e-6, float(np.abs(wanted).max())))


def _judge(reference: Reference, logits: list[np.ndarray], layers: list[_LayerDifference]) -> Parity:
    expected, prefill = reference.logits, len(reference.ids) - DECODED
    padded = logits[-1]
    calls = {"prefill": _difference(logits[0][0], expected[:prefill])}
    for step in range(DECODED):
        calls[f"decoding token {step + 1}"] = _difference(
            logits[1 + step][0], expected[prefill + step : prefill + step + 1]
        )
    calls["the left-padded row of a batch"] = _difference(padded[0, PADDING:], expected[:-PADDING])
    calls["the other row of a left-padded batch"] = _difference(padded[1], expected)
    limit = LIMIT * max(1.0, float(np.abs(expected).max()) / _LOGITS_AT_LIMIT)
    worst = max(calls.values())
    if not worst <= limit:
        call = next(call for call, difference in calls.items() if not difference <= limit)
        raise GraphError(
            f"The unquantised graph differs from PyTorch: by {calls[call]:.3g} in {call} (allowed {limit:.3g}; largest "
            f"in any call {worst:.3g}), {_where_it_starts(layers)}. Nothing was written: this model cannot be exported "
            "faithfully yet."
        )
    return Parity(worst, limit, sum(len(rows) * rows.shape[1] for rows in logits))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max())


def _where_it_starts(layers: list[_LayerDifference]) -> str:
    for index, layer in enumerate(layers):
        if not layer.relative <= LIMIT:
            return f"beginning in decoder layer {index} of the prefill"
    return "although every decoder layer agrees in the prefill"
