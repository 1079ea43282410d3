"""Time of `evaluate` against the bare session runs on the same windows, interleaved, for a portable .onnx.

python tools/bench_eval.py model.onnx --text wiki.txt --windows 16 --seqlen 512
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from spikeexport.evaluate import score_text
from spikeexport.evaluation_text import EvaluationText, evaluation_text
from spikeexport.runners.onnx_runner import OnnxRunner, open_onnx_runner

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def main() -> None:
    """Prints the medians and their ratio."""
    arguments = _arguments()
    with open_onnx_runner(arguments.onnx) as runner:
        text = evaluation_text(runner, arguments.text, windows=arguments.windows, seqlen=arguments.seqlen)
        feeds = [_feeds(runner, window) for window in text.ids]
        runner._session.run(["logits"], feeds[0])
        bare, scored = [], []
        for _ in range(arguments.repeats):
            bare.append(_seconds_bare(runner, feeds))
            scored.append(_seconds_scored(runner, text))
    ratio = statistics.median(b / a for a, b in zip(bare, scored, strict=True))
    print(
        f"bare session runs {statistics.median(bare):.2f} s, evaluate {statistics.median(scored):.2f} s: {ratio:.3f} x"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _feeds(runner: OnnxRunner, window: np.ndarray) -> dict[str, np.ndarray]:
    """What `evaluate` feeds for one window: BOS where the subject has one, and all but the last token."""
    lead = [] if runner.bos_id is None else [runner.bos_id]
    ids = np.array([[*lead, *window[:-1]]], np.int64)
    plain = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    feeds = {}
    for value in runner._session.get_inputs():
        if value.name in plain:
            feeds[value.name] = plain[value.name]
        elif value.name.startswith("past_key_values."):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), _DTYPES[value.type])
    return feeds


def _seconds_bare(runner: OnnxRunner, feeds: list[dict[str, np.ndarray]]) -> float:
    started = time.perf_counter()
    for one in feeds:
        runner._session.run(["logits"], one)
    return time.perf_counter() - started


def _seconds_scored(runner: OnnxRunner, text: EvaluationText) -> float:
    started = time.perf_counter()
    score_text(runner, text)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
