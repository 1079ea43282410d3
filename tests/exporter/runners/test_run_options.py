"""Threads and the like reach the runner, and are refused where they mean nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from spikeexport.build import build
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.runners.run_options import RunOptions, open_configured

from tests.constant_plan import write_portable
from tests.lowered_models import random_ids


@pytest.fixture(scope="module")
def onnx_file(tiny_llama_folder, tmp_path_factory):
    file = write_portable(tiny_llama_folder, tmp_path_factory.mktemp("options") / "tiny.onnx", dtype="fp32")
    shutil.copytree(tiny_llama_folder, file.with_suffix(".assets"))
    return file


def test_settings_reach_the_built_runner(onnx_file):
    built = build(onnx_file, backend="onnxruntime").path
    options = RunOptions(threads=1, spinning=False, chunk=3)
    with open_configured(built, options) as runner, open_configured(built) as plain:
        session = runner._graphs.prefill.session.get_session_options()
        assert session.intra_op_num_threads == 1
        assert session.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert session.get_session_config_entry("session.force_spinning_stop") == "0"
        assert runner.settings.chunk == 3
        ids = random_ids(1, 10)
        error = runner.prefill(ids)[0] - plain.prefill(ids)[0]
        assert np.abs(error).max() < 0.05 * np.abs(plain.prefill(ids)[0]).max()


def test_sessions_that_take_turns_do_not_spin_against_each_other(onnx_file, tmp_path):
    with open_configured(
        build(onnx_file, tmp_path / "two", backend="onnxruntime", decode="weight-only").path
    ) as runner:
        for body in (runner._graphs.prefill, runner._graphs.decode):
            options = body.session.get_session_options()
            assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_threads_of_the_portable_file(onnx_file):
    with open_configured(onnx_file, RunOptions(threads=1)) as runner:
        assert runner._session.get_session_options().intra_op_num_threads == 1


def test_threads_of_pytorch(tiny_llama_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    open_configured(tiny_llama_folder, RunOptions(threads=3)).close()
    assert seen == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"chunk": 4}, "--chunk is for what"), ({"spinning": False}, "does not run on ONNX Runtime")],
)
def test_what_means_nothing_is_refused(options, message, tiny_llama_folder):
    with pytest.raises(UsageError, match=message):
        open_configured(tiny_llama_folder, RunOptions(**options))


def test_counts_below_one_are_refused():
    with pytest.raises(UsageError, match="--threads 0"):
        RunOptions(threads=0)


def test_only_a_backend_with_passes_leaves_them_out(onnx_file, tmp_path):
    with pytest.raises(UsageError, match="Unknown lowering pass 'fuse'"):
        build(onnx_file, tmp_path / "out", backend="onnxruntime", without=("fuse",))
