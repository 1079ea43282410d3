"""Running decoder graphs with ONNX Runtime, and the same text with Hugging Face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from spikeexport.graphs.saving import save_model

KeyValues = dict[str, np.ndarray]


def open_session(model: ir.Model, folder: Path, name: str = "model") -> onnxruntime.InferenceSession:
    """Writes `model` into `folder` and opens it as it is, without any optimisation."""
    path = folder / f"{name}.onnx"
    save_model(model, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(
    session: onnxruntime.InferenceSession,
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    past: KeyValues | None = None,
) -> dict[str, np.ndarray]:
    """Returns the inputs of one call: ids [B, S], mask [B, past + S] (None: all ones), past as `call` returned it."""
    length = 0 if past is None else next(iter(past.values())).shape[2]
    mask = np.ones((len(ids), length + ids.shape[1]), np.int64) if mask is None else mask
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for spec in session.get_inputs():
        if spec.name.startswith("past_key_values."):
            dtype = np.float16 if "float16" in spec.type else np.float32
            empty = np.zeros((len(ids), spec.shape[1], 0, spec.shape[3]), dtype)
            values[spec.name] = empty if past is None else past[spec.name]
    return values


def call(
    session: onnxruntime.InferenceSession,
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    past: KeyValues | None = None,
) -> tuple[np.ndarray, KeyValues]:
    """Runs one call; returns logits [B, S, V] and the cache to give to the next call."""
    names = [spec.name for spec in session.get_outputs()]
    results = dict(zip(names, session.run(names, feeds(session, ids, mask, past)), strict=True))
    logits = results["logits"]
    past_names = [spec.name for spec in session.get_inputs() if spec.name.startswith("past_key_values.")]
    return logits, {name: results[name.replace("past_key_values.", "present.")] for name in past_names}


def reference_logits(model: torch.nn.Module, ids: np.ndarray, prefix: tuple[int, ...] = ()) -> np.ndarray:
    """Returns Hugging Face's logits [B, S, V] of ids [B, S] behind the prefix, given in sequence."""
    row = np.concatenate([np.tile(np.array(prefix, np.int64), (len(ids), 1)), ids], axis=1)
    with torch.inference_mode():
        return model(torch.from_numpy(row)).logits[:, len(prefix) :].numpy()


def largest_difference(
    session: onnxruntime.InferenceSession, model: torch.nn.Module, ids: np.ndarray, prefix: tuple[int, ...] = ()
) -> dict[str, float]:
    """Compares prefill, token-by-token decoding, a chunk behind a cache and a left-padded batch with Hugging Face.

    Args:
        session: A float32 decoder, with `prefix` baked in.
        model: The Hugging Face model.
        ids: int64 [1, S], S >= 12.
        prefix: Given to Hugging Face in front.
    """
    expected = reference_logits(model, ids, prefix)
    found = {"prefill": call(session, ids)[0]}
    logits, past = call(session, ids[:, :4])
    steps = [logits]
    for position in range(4, ids.shape[1] - 3):
        logits, past = call(session, ids[:, position : position + 1], past=past)
        steps.append(logits)
    steps.append(call(session, ids[:, -3:], past=past)[0])
    found["decode"] = np.concatenate(steps, axis=1)
    differences = {kind: float(np.abs(logits - expected).max()) for kind, logits in found.items()}
    return differences | {"left padding": _padded_difference(session, expected, ids)}


def _padded_difference(session: onnxruntime.InferenceSession, expected: np.ndarray, ids: np.ndarray) -> float:
    padding = 5
    rows = np.concatenate([np.concatenate([ids[:, -padding:], ids[:, :-padding]], axis=1), ids])
    mask = np.ones_like(rows)
    mask[0, :padding] = 0
    logits, past = call(session, rows[:, :-2], mask[:, :-2])
    last, _ = call(session, rows[:, -2:], mask, past)
    logits = np.concatenate([logits, last], axis=1)
    assert np.isfinite(logits).all(), "a row of padding is not finite"
    short = np.abs(logits[0, padding:] - expected[0, :-padding]).max()
    return float(max(short, np.abs(logits[1] - expected[0]).max()))
