"""From a GLU-based language model on Hugging Face to an INT8 engine that is fast and still right.

`profile`, `export`, `build`, `inspect`, `compare`, `evaluate`, `generate` and `deploy` do what the commands
of the same names do, `generate_batch` takes several prompts at once; they are imported when they are first used, so
that `import spikeexport` stays light.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikeexport.build import build
    from spikeexport.compare.compare import compare
    from spikeexport.deploy.deploy import deploy
    from spikeexport.evaluate import evaluate
    from spikeexport.export import export
    from spikeexport.generate import generate
    from spikeexport.generate_batch import generate_batch
    from spikeexport.inspect import inspect
    from spikeexport.profile import profile

__all__ = ["build", "compare", "deploy", "evaluate", "export", "generate", "generate_batch", "inspect", "profile"]

_HOMES = {
    "build": "spikeexport.build",
    "compare": "spikeexport.compare.compare",
    "deploy": "spikeexport.deploy.deploy",
    "evaluate": "spikeexport.evaluate",
    "export": "spikeexport.export",
    "generate": "spikeexport.generate",
    "generate_batch": "spikeexport.generate_batch",
    "inspect": "spikeexport.inspect",
    "profile": "spikeexport.profile",
}


class _LazyFunction:
    """A function of the API that is imported on first use.

    It has `__set__`, since importing `spikeexport.export` the module would otherwise replace `spikeexport.export` the
    function on the package.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, package: ModuleType | None, owner: type) -> Any:
        return getattr(importlib.import_module(_HOMES[self._name]), self._name)

    def __set__(self, package: ModuleType, value: object) -> None:
        """Ignores the sub-module that the import system puts here."""


class _Package(ModuleType):
    """The package's own type, which is where descriptors have to live to work."""

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *_HOMES])

    @property
    def __version__(self) -> str:
        """The installed version."""
        from importlib.metadata import version

        return version("spikeexport")


for _name in _HOMES:
    setattr(_Package, _name, _LazyFunction(_name))
sys.modules[__name__].__class__ = _Package
