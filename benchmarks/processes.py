"""Time and memory of a whole process and of everything it starts (Linux)."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import threading
import time
from collections.abc import Sequence

__all__ = ["ProcessCost", "measure", "own_peak_kib"]

_SAMPLE_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class ProcessCost:
    """What a command cost.

    Attributes:
        seconds: Wall time.
        peak_bytes: Largest sum of the resident sizes of the process and its descendants, sampled
            every 50 ms. Pages that several of them map count several times.
        code: Exit code; None when it was stopped at the time limit.
        message: Last line of what it wrote when it failed.
    """

    seconds: float
    peak_bytes: int
    code: int | None
    message: str


def measure(command: Sequence[str], limit_seconds: float) -> ProcessCost:
    """Run a command and say what it cost."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _tree_bytes(process.pid))
            done.wait(_SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output, _ = process.communicate(timeout=limit_seconds)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        code = None
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    last = output.strip().splitlines()[-1][:300] if code != 0 and output.strip() else ""
    return ProcessCost(seconds, peak, code, last)


def _tree_bytes(root: int) -> int:
    total, pending = 0, [root]
    while pending:
        process = pathlib.Path("/proc") / str(pending.pop())
        try:
            for line in (process / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
            for task in (process / "task").iterdir():
                pending.extend(int(child) for child in (task / "children").read_text().split())
        except (OSError, ValueError):
            continue  # it ended meanwhile
    return total


def own_peak_kib() -> int:
    """Largest resident size of this process so far.

    Not of `resource.getrusage`, which begins with the size of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1])
