"""Runs mypy over the package.

An editable install maps `spikeexport`, `spikeexport.calibration` and `spikeexport.graphs` to three folders through an
import hook, which mypy does not follow. A folder of symbolic links shows it the package as Python sees it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VIEW = ROOT / ".mypy_cache" / "view"
PACKAGE = "spikeexport"
TOP, INNER = "exporter", ("calibration", "graphs")


def main() -> int:
    """Returns mypy's exit code."""
    link_package()
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--package", PACKAGE, *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, "MYPYPATH": str(VIEW)}, cwd=VIEW, check=False).returncode


def link_package() -> None:
    """Makes the folder that looks like the installed package, afresh, so that deleted modules are gone."""
    package = VIEW / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    for source in (ROOT / TOP).iterdir():
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    for name in INNER:
        (package / name).symlink_to(ROOT / name)


if __name__ == "__main__":
    sys.exit(main())
