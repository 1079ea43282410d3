"""The limits of this machine: int8 operations per second and bytes read per second, by a small C program."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu_limits.c")


@dataclass(frozen=True)
class CpuLimits:
    """What no program on this machine can exceed.

    Attributes:
        int8_ops_per_s: Operations of u8 x s8 multiply-adds (two each) on registers, all threads; None without VNNI.
        read_bytes_per_s: Bytes read from memory, all threads.
    """

    int8_ops_per_s: float | None
    read_bytes_per_s: float


def measure_limits(threads: int) -> CpuLimits | None:
    """Compiles and runs `cpu_limits.c` with that many threads; None without a C compiler or on no x86."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cpu_limits"
        command = [compiler, "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        answer = subprocess.run([str(program), str(threads)], capture_output=True, text=True, check=True).stdout
    int8_gops, read_gb = (float(number) for number in answer.split())
    return CpuLimits(1e9 * int8_gops or None, 1e9 * read_gb)


if __name__ == "__main__":
    print(measure_limits(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
