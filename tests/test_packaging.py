"""The list of packages is the folders, and the wheel holds them all and nothing beside them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"exporter": "spikeexport", "calibration": "spikeexport.calibration", "graphs": "spikeexport.graphs"}


def listed_packages() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("packages = [", 1)[1].split("]", 1)[0]
    return [line.strip(' ",') for line in block.splitlines() if line.strip()]


def packages_in_folders() -> set[str]:
    found = set()
    for folder, package in FOLDERS.items():
        for marker in (ROOT / folder).rglob("__init__.py"):
            parts = marker.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *parts]))
    return found


def test_every_folder_is_listed_once():
    listed = listed_packages()
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_in_folders()


def test_every_module_lies_in_a_package():
    for folder in FOLDERS:
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} lacks an __init__.py"


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"spikeexport"}
    modules = {name for name in names if name.endswith(".py")}
    for folder, package in FOLDERS.items():
        for module in (ROOT / folder).rglob("*.py"):
            assert f"{package.replace('.', '/')}/{module.relative_to(ROOT / folder)}" in modules
    for data in ("style.css", "base.html", "compare.html", "profile.html", "spikes.html", "macros.html"):
        assert f"spikeexport/report/{data}" in names
