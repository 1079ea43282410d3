"""The CPU table and the measurements beside it, in one command each, on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from spikeexport.build import build

from tests.constant_plan import write_portable

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: str) -> str:
    command = [sys.executable, str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the machine's limits")
def test_the_table_has_every_subject_its_ratios_and_the_limits(tiny_llama_folder, tmp_path):
    onnx = write_portable(tiny_llama_folder, tmp_path / "tiny.onnx", dtype="fp32")
    shutil.copytree(tiny_llama_folder, onnx.with_suffix(".assets"))
    built = build(onnx, backend="onnxruntime").path
    sizes = ("--prompts", "6", "9", "--decode", "2", "--rounds", "2", "--threads", "1")
    files = ("--plot", str(tmp_path / "speed.png"), "--json", str(tmp_path / "table.json"))
    table = run("bench_cpu.py", str(built), "--against", str(onnx), *sizes, *files)
    assert "| subject | prefill 6, tok/s | prefill 9, tok/s | decode behind 6, tok/s |" in table
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == [built.name, onnx.name]
    assert "at 9 tokens: tiny.onnx prefill" in table
    assert "of which decode reads" in table
    results = json.loads((tmp_path / "table.json").read_text())
    assert [result["prefill"] for result in results] == [6, 9]
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_int8_and_fp32_caches_side_by_side():
    table = run("kv_cache_cpu.py", "--layers", "2", "--past", "32", "64", "--rounds", "2").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:4]]
    assert [row[0] for row in cells] == ["32", "64"]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in cells)
