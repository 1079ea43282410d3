"""What the CPU offers: its physical cores for this process, and whether u8 x s8 products stay exact."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores() -> int:
    """Returns the number of physical cores that this process may use, at least 1 (hyper-threads count once)."""
    allowed = _allowed_cpus()
    cores = {place for cpu, place in _core_of_cpu().items() if cpu in allowed}
    count = len(cores) or len(allowed)
    quota = _cpu_quota()
    return max(1, min(count, math.ceil(quota)) if quota else count)


def cpu_model() -> str:
    """Returns the processor's name as the system gives it."""
    for line in _cpuinfo_lines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def u8s8_saturates() -> bool:
    """Whether this CPU's u8 x s8 kernels add pairs in 16 bits, which can saturate: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    flags = next((line for line in _cpuinfo_lines() if line.startswith("flags")), "").split()
    return not {"avx512_vnni", "avx_vnni", "avx512vnni"} & set(flags)


def release_freed_memory() -> None:
    """Gives memory that was freed in this process back to the system, where the C library can (glibc)."""
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cpuinfo_lines() -> list[str]:
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _core_of_cpu() -> dict[int, tuple[str, str]]:
    places: dict[int, tuple[str, str]] = {}
    cpu, package = -1, ""
    for line in _cpuinfo_lines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            cpu = int(value)
        elif key == "physical id":
            package = value
        elif key == "core id":
            places[cpu] = (package, value)
    return places


def _cpu_quota() -> float | None:
    """Returns the CPUs' worth of time that a container's quota allows, or None without one."""
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
