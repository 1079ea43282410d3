"""Benchmarks of tiny subjects: what is reported, and that the figures follow the work."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from spikeexport.bench import _Turns, bench, random_ids, subject_bytes
from spikeexport.bench_peers import GENAI, LLAMA_CPP, open_bench_subject, subject_path
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import SpikeExportError, UsageError
from spikeexport.machine_load import LoadMeter
from spikeexport.peak_memory import high_water_mark, peak_rss_bytes
from spikeexport.runners.base import CausalRunner

from tests.constant_plan import write_portable


@pytest.fixture(scope="module")
def onnx_file(tiny_llama_folder, tmp_path_factory):
    file = write_portable(tiny_llama_folder, tmp_path_factory.mktemp("bench") / "tiny.onnx", dtype="fp32")
    shutil.copytree(tiny_llama_folder, file.with_suffix(".assets"))
    return file


@pytest.fixture(scope="module")
def built(onnx_file):
    return build(onnx_file, backend="onnxruntime").path


def test_subjects_side_by_side(built, onnx_file):
    result = bench(built, [onnx_file], prefill=12, decode=3, rounds=2)
    data = result.to_json()
    assert data["name"] == str(built)
    assert {"prefill_tokens_per_s", "decode_tokens_per_s", "size_bytes", "peak_rss_bytes"} <= set(data)
    assert [subject["name"] for subject in data["subjects"]] == [str(built), str(onnx_file)]
    assert set(data["ratios"]) == {str(onnx_file)}
    assert all(ratio > 0 for ratio in data["ratios"][str(onnx_file)].values())
    assert data["machine"]["threads"] >= 1
    assert data["machine"]["onnxruntime"]
    first = result.subjects[0]
    assert first.prefill_tokens_per_s == pytest.approx(12e3 / first.prefill_ms)
    assert 20e6 < first.peak_rss_bytes < 2e9


class FakeRunner(CausalRunner):
    """Takes a known time for each call."""

    vocab_size, max_positions, max_batch = 100, 64, 2
    name = "fake"

    def __init__(self, clock: list[float], prefill_s: float, decode_s: float) -> None:
        self._clock, self._prefill_s, self._decode_s = clock, prefill_s, decode_s

    def prefill(self, ids, attention_mask=None, *, last_only=False):
        self._clock[0] += self._prefill_s
        return np.zeros((len(ids), 1, 100), np.float32), None

    def decode(self, ids, cache):
        self._clock[0] += self._decode_s
        return np.zeros((len(ids), 1, 100), np.float32), None


def test_ratios_and_rates_follow_the_clock(monkeypatch, tmp_path):
    clock = [0.0]
    runners = {"fast": FakeRunner(clock, 0.1, 0.01), "slow": FakeRunner(clock, 0.3, 0.02)}
    monkeypatch.setattr("spikeexport.bench.open_bench_subject", lambda name, options: runners[name])
    monkeypatch.setattr("spikeexport.bench.time.perf_counter", lambda: clock[0])
    result = bench("fast", ["slow"], prefill=10, decode=4, batch=2, rounds=3, memory=False)
    assert result.ratios["slow"].prefill == pytest.approx(3.0)
    assert result.ratios["slow"].decode == pytest.approx(2.0)
    assert result.subjects[0].prefill_tokens_per_s == pytest.approx(200)
    assert result.subjects[0].decode_tokens_per_s == pytest.approx(200)
    assert (result.subjects[0].size_bytes, result.subjects[0].peak_rss_bytes) == (None, None)


def test_a_round_is_one_prefill_and_the_median_step():
    clock = [0.0]
    turns = _Turns("fake", FakeRunner(clock, 0.5, 0.25), 0.0, lambda: clock[0])
    turns.run(random_ids(100, 1, 8), 3)
    assert (turns.prefill, statistics.median(turns.decode)) == ([0.5], 0.25)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"prefill": 0}, "give 1 or more"), ({"prefill": 100}, "takes 64 tokens"), ({"batch": 3}, "batches of 2")],
)
def test_impossible_requests_are_explained(numbers, message, monkeypatch):
    monkeypatch.setattr("spikeexport.bench.open_bench_subject", lambda name, options: FakeRunner([0.0], 1, 1))
    with pytest.raises(UsageError, match=message):
        bench("fake", **{"prefill": 8, "decode": 2, "memory": False, **numbers})


def test_the_same_subject_twice_is_refused():
    with pytest.raises(UsageError, match="named twice"):
        bench("a", ["a"])


def test_peers_are_named_by_a_prefix(tmp_path):
    assert subject_path(f"{LLAMA_CPP}/models/a.gguf").name == "a.gguf"
    assert subject_path(f"{GENAI}/models/folder").name == "folder"


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(SpikeExportError, match="pip install llama-cpp-python"):
        open_bench_subject(f"{LLAMA_CPP}a.gguf")


def test_sizes_count_external_data(onnx_file, built):
    data = onnx_file.with_name(f"{onnx_file.name}.data")
    assert subject_bytes(str(onnx_file)) == onnx_file.stat().st_size + data.stat().st_size
    assert subject_bytes(str(built)) > (built / "model.onnx.data").stat().st_size
    assert subject_bytes("some/hub-id") is None


def test_memory_is_that_of_the_subjects_own_process(onnx_file):
    ballast = np.ones(400 * 2**20 // 8)
    own = high_water_mark()
    assert own is not None
    assert own > ballast.nbytes
    assert peak_rss_bytes(str(onnx_file), 8, 2, 1) < own


def test_a_failing_measurement_is_explained(tmp_path):
    with pytest.raises(SpikeExportError, match=r"Measuring the memory of .*absent\.onnx failed"):
        peak_rss_bytes(str(tmp_path / "absent.onnx"), 8, 2, 1)


def test_disturbed_rounds_are_measured_again(monkeypatch):
    clock = [0.0]
    shares = iter([0.9, 0.0, 0.5, 0.3, 0.02, 0.01])
    monkeypatch.setattr("spikeexport.bench.open_bench_subject", lambda name, options: FakeRunner(clock, 0.1, 0.01))
    monkeypatch.setattr("spikeexport.bench.LoadMeter.others_share", lambda meter: next(shares))
    result = bench("fake", prefill=8, decode=2, rounds=3, memory=False)
    assert (result.repeated, result.others_share) == (2, 0.02)


def test_a_machine_that_is_never_quiet_still_gives_figures(monkeypatch):
    monkeypatch.setattr("spikeexport.bench.open_bench_subject", lambda name, options: FakeRunner([0.0], 0.1, 0.01))
    monkeypatch.setattr("spikeexport.bench.LoadMeter.others_share", lambda meter: 0.8)
    monkeypatch.setattr("spikeexport.bench.time.perf_counter", iter(range(10**6)).__next__)
    result = bench("fake", prefill=8, decode=2, rounds=2, memory=False)
    assert (result.repeated, result.others_share) == (6, 0.8)


def test_the_work_of_others_is_seen():
    meter = LoadMeter()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        meter.start()
        time.sleep(0.5)
        assert meter.others_share() > 0.5 / os.cpu_count() * 0.5
    finally:
        other.kill()
        other.wait()
