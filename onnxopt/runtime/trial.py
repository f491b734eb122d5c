"""Run a model on feeds and keep what it shows: outputs, kernels, times."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from onnxopt.runtime.messages import Kernel, SessionInfo
from onnxopt.runtime.worker import Worker

__all__ = ["Trial", "race", "try_model"]

Feed = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What running a model showed.

    Attributes:
        info: The session's signature and load time. The session itself may be closed.
        outputs: All outputs, by feed.
        kernels: Nodes of the runtime's optimized graph that ran.
        seconds: Times of single runs of the last feed, without profiling; none unless asked for.
    """

    info: SessionInfo
    outputs: list[list[Any]]
    kernels: list[Kernel]
    seconds: list[float]


def try_model(
    worker: Worker,
    model: str | os.PathLike[str],
    feeds: Sequence[Feed],
    *,
    threads: int = 1,
    seconds: float = 0.0,
    level: str = "all",
) -> Trial:
    """Load a model, run it on each feed, and forget it.

    One session serves for the outputs, the list of kernels and, once profiling has ended, for a
    first look at the time.

    Args:
        worker: Where to run it.
        model: Path of the model.
        feeds: Inputs of each run.
        threads: Threads for one operator.
        seconds: Time to spend on timing the last feed; 0 for none.
        level: The runtime's optimization level.

    Raises:
        RuntimeRefusalError: When the runtime does not load or run it.
        RuntimeCrashError: When the process dies or hangs.
    """
    info = worker.open(model, threads=threads, level=level, profile=True)
    try:
        outputs = [worker.run(info.session, feed) for feed in feeds]
        kernels = worker.kernels(info.session)
        times = worker.time([info.session], feeds[-1], seconds, 3)[0] if seconds and feeds else []
    finally:
        worker.close(info.session)
    return Trial(info, outputs, kernels, times)


def race(
    worker: Worker,
    models: Sequence[str | os.PathLike[str]],
    feed: Feed,
    *,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[list[float]]:
    """Time models against each other on one feed, in turn and all loaded at once.

    Returns:
        Seconds for one run, by model and round.
    """
    sessions = [worker.open(model, threads=threads).session for model in models]
    try:
        return worker.time(sessions, feed, seconds, 11)
    finally:
        for session in sessions:
            worker.close(session)
