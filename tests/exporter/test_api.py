"""`import spikeexport` is light, and its functions stay functions."""

import subprocess
import sys

import spikeexport


def test_import_is_light():
    code = "import sys, spikeexport; print(*[m for m in ('torch', 'numpy', 'onnx_ir', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_functions_survive_the_import_of_their_modules():
    from spikeexport.evaluate import evaluate
    from spikeexport.generate import generate

    assert spikeexport.generate is generate
    assert spikeexport.evaluate is evaluate
    assert set(spikeexport.__all__) <= set(dir(spikeexport))
    assert all(
        callable(getattr(spikeexport, name)) for name in ("profile", "compare", "build", "inspect", "generate_batch")
    )


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert spikeexport.__version__ == version("spikeexport")
