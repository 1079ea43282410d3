"""Which NVIDIA GPUs answer on this machine, asked through nvidia-smi so that no driver is loaded into this process."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from spikeexport.calibration.foundation.errors import one_line

_QUERY = "name,compute_cap,driver_version,memory.total"
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: Product name.
        compute_capability: Such as "8.9".
        driver: Driver version.
        memory_mib: Its memory, in MiB.
    """

    name: str
    compute_capability: str
    driver: str
    memory_mib: int


@dataclass(frozen=True)
class GpuAnswer:
    """What the driver answered.

    Attributes:
        gpus: The GPUs, in the driver's order.
        why_none: Why there is none, in one phrase; None when there is one.
    """

    gpus: tuple[Gpu, ...]
    why_none: str | None


def ask_gpus() -> GpuAnswer:
    """Lists the GPUs that the driver reports."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return GpuAnswer((), "no NVIDIA driver (nvidia-smi is not on the PATH)")
    try:
        run = subprocess.run(
            [command, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return GpuAnswer((), f"nvidia-smi did not answer ({one_line(error, 120)})")
    if run.returncode != 0:
        return GpuAnswer((), f"nvidia-smi failed ({one_line(run.stderr or run.stdout, 120)})")
    gpus = read_gpu_table(run.stdout)
    return GpuAnswer(gpus, None if gpus else "nvidia-smi lists no GPU")


def read_gpu_table(text: str) -> tuple[Gpu, ...]:
    """Reads nvidia-smi's comma-separated lines; a value that a GPU does not report counts as 0."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return tuple(
        Gpu(name, capability, driver, int(memory) if memory.isdigit() else 0)
        for name, capability, driver, memory in (row for row in rows if len(row) == len(_QUERY.split(",")))
    )
