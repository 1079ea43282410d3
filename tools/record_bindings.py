"""Records the names that TensorRT's Python bindings export, without TensorRT's libraries and without a GPU.

The binding wheels install from the package index, the libraries don't. Nine C entry points are all that a binding needs
to be imported, so stub libraries stand in for them; nothing is called. The lists are what tests check the driver's
calls against:

    python tools/record_bindings.py tensorrt-cu12-bindings==10.16.1.11 tests/exporter/backends/tensorrt/bindings

A distribution that can be imported as it is (tensorrt_rtx) is recorded with `--installed`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_PRINT_NAMES = """
import importlib, inspect, json, sys
module = importlib.import_module(sys.argv[1])
public = lambda thing: sorted(name for name in dir(thing) if not name.startswith("_"))
classes = {name: public(value) for name, value in vars(module).items() if inspect.isclass(value) and name[0] != "_"}
print(json.dumps({"version": module.__version__, "module": public(module), "classes": classes}))
"""


def names_of(module: str, environment: dict[str, str]) -> dict[str, object]:
    """Imports `module` in a subprocess and returns its version, its names and those of its classes."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PRINT_NAMES, module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        sys.exit(f"{module} cannot be imported: {run.stderr.strip()[-400:]}")
    names: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return names


def names_in_wheel(requirement: str) -> dict[str, object]:
    """Downloads a bindings wheel and imports it beside stub libraries."""
    with tempfile.TemporaryDirectory() as private:
        folder = Path(private)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", private, requirement]
        subprocess.run(command, check=True)
        wheel = next(folder.glob("*.whl"))
        zipfile.ZipFile(wheel).extractall(folder / "wheel")
        binding = next((folder / "wheel").glob("*/tensorrt*.so"))
        _write_stubs(binding, folder / "stubs")
        paths = {"LD_LIBRARY_PATH": str(folder / "stubs"), "PYTHONPATH": str(folder / "wheel")}
        return names_of(binding.parent.name, paths)


def _write_stubs(binding: Path, folder: Path) -> None:
    """Compiles one empty function per entry point into every library that the binding asks for."""
    folder.mkdir()
    needed = re.findall(r"\[(libnv[^\]]+)\]", _output(["readelf", "-d", str(binding)]))
    symbols = re.findall(r"U (\w+)$", _output(["nm", "-D", "--undefined-only", str(binding)]), re.MULTILINE)
    entry_points = [name for name in symbols if not name.startswith(("Py", "_"))]
    source = folder / "stubs.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in entry_points))
    for library in needed:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
        subprocess.run(command, check=True)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Writes <distribution>-<major.minor>.json into the given folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requirement", help="a bindings distribution with its version, or an installed module")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--installed", action="store_true", help="import the module as it is installed")
    arguments = parser.parse_args()
    found = names_of(arguments.requirement, {}) if arguments.installed else names_in_wheel(arguments.requirement)
    title = re.split(r"[=<>-]", arguments.requirement)[0]
    short = ".".join(str(found["version"]).split(".")[:2])
    arguments.folder.mkdir(parents=True, exist_ok=True)
    target = arguments.folder / f"{title}-{short}.json"
    target.write_text(_one_line_per_class(found), encoding="utf-8")
    print(target)


def _one_line_per_class(found: dict[str, object]) -> str:
    classes = found["classes"]
    assert isinstance(classes, dict), "names_of returns classes by name"
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(classes[name])}" for name in sorted(classes))
    head = f'"version": {json.dumps(found["version"])},\n"module": {json.dumps(found["module"])}'
    return f'{{{head},\n"classes": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    main()
