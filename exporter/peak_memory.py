"""Peak memory of one subject, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from spikeexport.calibration.foundation.errors import SpikeExportError, one_line

_STATUS = Path("/proc/self/status")


def peak_rss_bytes(subject: str, prefill: int, decode: int, batch: int) -> int | None:
    """Returns the largest resident set of a fresh process that opens `subject`, prefills and decodes.

    Mapped files count, and so do the interpreter and its libraries. None where the system does not tell (no /proc).

    Raises:
        SpikeExportError: The process failed.
    """
    command = [sys.executable, "-m", "spikeexport.peak_memory", subject, str(prefill), str(decode), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SpikeExportError(f"Measuring the memory of {subject} failed: {one_line(done.stderr[-300:])}.")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Runs one subject as the arguments say and prints this process's peak in bytes as JSON."""
    from spikeexport.bench import random_ids
    from spikeexport.bench_peers import open_bench_subject

    subject, prefill, decode, batch = sys.argv[1], *(int(text) for text in sys.argv[2:5])
    with open_bench_subject(subject) as runner:
        ids = random_ids(runner.vocab_size, batch, prefill)
        _, cache = runner.prefill(ids, last_only=True)
        for _ in range(decode):
            _, cache = runner.decode(ids[:, :1], cache)
    print(json.dumps(high_water_mark()))


def high_water_mark() -> int | None:
    """Returns this process's VmHWM in bytes; getrusage would count the parent's memory at the fork too."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    main()
