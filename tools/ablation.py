"""Reruns the ablation table on any model and writes it as Markdown and JSON.

Every row is one plan, made on calibration text and judged by fake quantisation in PyTorch on a text that calibration
did not see. `python tools/ablation.py MODEL --text wiki.txt -o ablation` writes ablation.md and ablation.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ablation_rows import ROWS, markdown
from ablation_run import Bench
from spikeexport.calibration.foundation.errors import SpikeExportError
from spikeexport.calibration.foundation.files import staged_outputs


def main() -> int:
    """Runs the rows that were asked for and returns the exit code."""
    arguments = _arguments()
    try:
        bench = Bench(
            arguments.model,
            arguments.text,
            arguments.windows,
            arguments.seqlen,
            tuple(arguments.calibration),
            arguments.samples,
        )
        rows = [bench.run(row) for row in ROWS if not arguments.only or row.name in arguments.only]
        table = {"model": bench.name, "text": Path(arguments.text).name, **bench.protocol, "rows": rows}
        _write(Path(arguments.output), table)
    except SpikeExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(table))
    return 0


def _write(stem: Path, table: dict) -> None:
    targets = stem.with_suffix(".md"), stem.with_suffix(".json")
    with staged_outputs(*targets) as staging:
        (staging / targets[0].name).write_text(markdown(table), encoding="utf-8")
        (staging / targets[1].name).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="Hugging Face folder, hub id or .gguf file")
    parser.add_argument("--text", required=True, help="text to judge on; calibration must not have seen it")
    parser.add_argument("--calibration", action="append", default=None, help="calibration text, repeatable (self)")
    parser.add_argument("--samples", type=int, default=None, help="calibration windows (as many as export takes)")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument(
        "--only", action="append", choices=[row.name for row in ROWS], help="this row alone; repeatable"
    )
    parser.add_argument("-o", "--output", default="ablation", help="stem of the .md and .json to write")
    arguments = parser.parse_args()
    arguments.calibration = arguments.calibration or ["self"]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
