"""The family table: every configuration that is compared with Hugging Face, with its largest measured difference.

    python tools/family_table.py [family ...] [-o TABLE.md]

Each configuration is a tiny random model, exported in FP32 and compared in prefill, token-by-token decoding, a chunk
behind a cache, a left-padded batch, beyond the sliding window, and all of it behind a baked prefix. Exit 3 when a
difference exceeds the limit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1e-3


def main() -> int:
    """Measures, prints the table as it grows, and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="model_type; all when none is named")
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from spikeexport.calibration.foundation.progress import set_verbosity
    from transformers.utils.logging import disable_progress_bar

    from tests.family_cases import CASES, FAMILY_NAMES

    set_verbosity(-1)
    disable_progress_bar()

    unknown = [family for family in options.family if family not in CASES]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(CASES)}")
    lines = ["| family | `model_type` | configuration | largest difference |", "| --- | --- | --- | --- |"]
    print(*lines, sep="\n")
    worst = 0.0
    for family in options.family or CASES:
        for label in CASES[family]:
            difference = _measure(family, label)
            worst = max(worst, difference)
            lines.append(f"| {FAMILY_NAMES[family]} | `{family}` | {label} | {difference:.1e} |")
            print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"Largest of all: {worst:.1e} (limit {LIMIT:g})", file=sys.stderr)
    return 0 if worst <= LIMIT else 3


def _measure(family: str, label: str) -> float:
    from tests.family_parity import measure_case

    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory() as folder:
        return max(measure_case(family, label, Path(folder)).values())


if __name__ == "__main__":
    sys.exit(main())
