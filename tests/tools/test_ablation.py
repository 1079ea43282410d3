"""The ablation table on a tiny model: a plan that fails, one that repairs it, and one that cannot be exported."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import long_text, plant_spike, token_id

TOOL = Path(__file__).parents[2] / "tools" / "ablation.py"


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_the_table_orders_plans_and_marks_what_cannot_be_exported(tmp_path):
    folder = plant_spike(tmp_path / "spiky", token_id("e"), layer=1, ratio=500.0)
    text = tmp_path / "text.txt"
    text.write_text(long_text(60_000), encoding="utf-8")
    names = ("none", "QFeM", "default, W4A8")
    only = [part for name in names for part in ("--only", name)]
    stem = tmp_path / "table"
    judged = ("--text", text, "--windows", "4", "--seqlen", "64")
    done = run(folder, *judged, "--calibration", text, "--samples", "16", *only, "-o", stem)
    assert done.returncode == 0, done.stderr
    table = json.loads(stem.with_suffix(".json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert tuple(rows) == names
    assert rows["QFeM"]["kl"] < 0.5 * rows["none"]["kl"]
    assert rows["QFeM"]["worst_ratio"] < 20 < rows["none"]["worst_ratio"]
    assert rows["QFeM"]["excluded"] >= 1
    assert [row["exportable"] for row in table["rows"]] == [True, True, False]
    assert all(math.isfinite(row["perplexity"]) and row["seconds"] > 0 for row in table["rows"])
    lines = stem.with_suffix(".md").read_text().splitlines()
    assert lines[2].startswith("| plan | perplexity |")
    assert len(lines) == 4 + len(names)
    assert lines[-1].endswith("| no |")


@pytest.mark.parametrize(("text", "message"), [("absent.txt", "absent.txt does not exist"), ("", "error:")])
def test_bad_input_is_one_line(tmp_path, text, message):
    done = run(tmp_path, "--text", tmp_path / text)
    assert done.returncode == 1
    assert message in done.stderr or "config.json" in done.stderr
    assert "Traceback" not in done.stderr
