"""What a model takes of a machine apart from its runs: time to load, and memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from onnxopt.parallel.quiet import quiet
from onnxopt.runtime.worker import Worker

__all__ = ["Footprint", "footprint"]

#: A model is loaded so often, and the shortest time counts.
_LOADS = 3


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What loading a model takes.

    Attributes:
        load_seconds: Shortest time that ONNX Runtime took to load it.
        peak_memory_bytes: Largest resident size of a process that loads it once and runs it once.
        load_memory_bytes: Largest resident size of such a process by the time the model is loaded.
        idle_memory_bytes: Resident size of such a process before it loads the model.
    """

    load_seconds: float
    peak_memory_bytes: int
    load_memory_bytes: int
    idle_memory_bytes: int


def footprint(
    model: str | os.PathLike[str], feed: Mapping[str, Any], threads: int = 1
) -> Footprint:
    """Load a model in a fresh process, and run it once.

    Raises:
        RuntimeRefusalError: When the runtime does not load or run it.
        RuntimeCrashError: When the process dies or hangs.
    """
    with quiet(), Worker() as worker:
        idle = worker.peak_memory()
        info = worker.open(model, threads=threads)
        loaded = worker.peak_memory()
        worker.run(info.session, feed)
        peak = worker.peak_memory()
        loads = [info.load_seconds]
        for _ in range(_LOADS - 1):
            worker.close(info.session)
            info = worker.open(model, threads=threads)
            loads.append(info.load_seconds)
    return Footprint(min(loads), peak, loaded, idle)
