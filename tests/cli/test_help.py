"""Help is quick and light: nothing heavy is imported before a command runs."""

import json
import subprocess
import sys

import pytest
from spikeexport.cli.main import COMMANDS

HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "tensorrt", "tensorrt_rtx", "matplotlib", "numpy"}

_PROBE = """
import json, sys
from spikeexport.cli.main import main
try:
    main()
except SystemExit as stop:
    print(json.dumps({"code": stop.code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def modules_after(*arguments: str) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids=lambda arguments: " ".join(arguments))
def test_help_imports_nothing_heavy(arguments):
    seen, text = modules_after(*arguments, "--help")
    assert seen["code"] == 0
    assert "Usage" in text
    assert not HEAVY & set(seen["modules"])


def test_every_command_has_the_shared_flags():
    for name in COMMANDS:
        _, text = modules_after(name, "--help")
        assert all(flag in text for flag in ("--json", "--quiet", "--verbose")), name


def test_top_help_lists_every_command():
    _, text = modules_after("--help")
    assert all(f" {name} " in text for name in COMMANDS)


def test_module_and_program_say_the_same_version():
    as_module = subprocess.run(
        [sys.executable, "-m", "spikeexport", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    seen, text = modules_after("--version")
    assert as_module.stdout == text == f"spikeexport {text.split()[1]}\n"
    assert not HEAVY & set(seen["modules"])
