"""How much of the processor other processes take, so that a benchmark knows which of its rounds were disturbed."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE_FIELDS = (3, 4)
_COUNTED_TWICE = (8, 9)


class LoadMeter:
    """Measures the share of all CPUs that was busy for others since `start`."""

    def __init__(self) -> None:
        self._busy_s = self._own_s = self._at = 0.0

    def start(self) -> None:
        """Begins an interval."""
        self._busy_s, self._own_s, self._at = _busy_seconds() or 0.0, _own_seconds(), time.monotonic()

    def others_share(self) -> float | None:
        """Returns the share, 0 to 1, since `start`; None where the system does not tell (no /proc/stat)."""
        busy, elapsed = _busy_seconds(), time.monotonic() - self._at
        if busy is None or elapsed <= 0:
            return None
        others = (busy - self._busy_s) - (_own_seconds() - self._own_s)
        return min(1.0, max(0.0, others / (elapsed * (os.cpu_count() or 1))))


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system


def _busy_seconds() -> float | None:
    """Returns the seconds that all CPUs together have not been idle; what a hypervisor took counts as busy."""
    try:
        first = _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
    except (OSError, IndexError):
        return None
    ticks = [int(field) for place, field in enumerate(first) if place not in (*_IDLE_FIELDS, *_COUNTED_TWICE)]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")
