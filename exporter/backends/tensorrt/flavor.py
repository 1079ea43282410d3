"""What differs between TensorRT and TensorRT-RTX, as values; everything else is one driver."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from types import ModuleType

from spikeexport.calibration.foundation.errors import BackendError, one_line


@dataclass(frozen=True)
class Flavor:
    """One of the two libraries.

    Attributes:
        backend: Name in the registry of backends.
        module: Python module.
        title: What it is called in messages.
        install: Command that installs it.
        needs_gpu: Whether building needs a GPU.
        pinned: Versions whose reports are known, as a regular expression over the full version.
        default_targets: Compute capabilities built for when none is given; empty = the GPU at hand.
    """

    backend: str
    module: str
    title: str
    install: str
    needs_gpu: bool
    pinned: str
    default_targets: tuple[str, ...] = ()

    def accepts(self, version: str) -> bool:
        """Says whether the driver knows this version's calls and reports."""
        return re.fullmatch(self.pinned, version) is not None


TENSORRT = Flavor(
    backend="tensorrt",
    module="tensorrt",
    title="TensorRT",
    install="pip install 'spikeexport[tensorrt]'",
    needs_gpu=True,
    pinned=r"1[01]\..*",
)
TENSORRT_RTX = Flavor(
    backend="tensorrt-rtx",
    module="tensorrt_rtx",
    title="TensorRT-RTX",
    install="pip install 'spikeexport[rtx]'",
    needs_gpu=False,
    pinned=r"1\.7\.1(\..*)?",
    default_targets=("8.9",),
)

FLAVORS = {flavor.backend: flavor for flavor in (TENSORRT, TENSORRT_RTX)}


def load_module(flavor: Flavor) -> ModuleType:
    """Imports the library; only ever called in a subprocess first, since a broken install can end the process.

    Raises:
        BackendError: It is missing, broken, or of a version that this driver does not know.
    """
    if flavor is TENSORRT_RTX:
        os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    try:
        module = importlib.import_module(flavor.module)
    except ImportError as error:
        # `import tensorrt` without its libraries is an ImportError too
        raise BackendError(f"{flavor.title} cannot be imported ({one_line(error, 160)}): {flavor.install}.") from error
    version = str(getattr(module, "__version__", "unknown"))
    if not flavor.accepts(version):
        raise BackendError(
            f"{flavor.title} {version} is installed; this version of spikeexport reads the reports of "
            f"{flavor.pinned.replace(chr(92), '')}: {flavor.install}."
        )
    return module
