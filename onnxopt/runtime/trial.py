"""Run a model on feeds and keep what it shows: outputs, kernels, times."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from onnxopt.parallel.quiet import quiet
from onnxopt.runtime.messages import Kernel, SessionInfo
from onnxopt.runtime.worker import Worker

__all__ = ["Trial", "race", "try_model"]

Feed = dict[str, Any]

#: A race is run in so many parts of at least so many rounds.
_HEATS = 4
_LEAST_ROUNDS = 4


@dataclasses.dataclass(frozen=True)
class Trial:
    """What running a model showed.

    Attributes:
        model: Path of the model.
        info: The session's signature and load time.
        outputs: All outputs, by feed.
        kernels: Nodes of the runtime's optimized graph that ran.
        seconds: Times of single runs of the first feed, without profiling; none unless asked for.
        generation: The worker's when the session was left open, else None.
    """

    model: str | os.PathLike[str]
    info: SessionInfo
    outputs: list[list[Any]]
    kernels: list[Kernel]
    seconds: list[float]
    generation: int | None

    def close(self, worker: Worker) -> None:
        """Let go of the session, if it is still there."""
        if self.generation == worker.generation:
            worker.close(self.info.session)


def try_model(
    worker: Worker,
    model: str | os.PathLike[str],
    feeds: Sequence[Feed],
    *,
    threads: int = 1,
    seconds: float = 0.0,
    level: str = "all",
    keep_open: bool = False,
    info: SessionInfo | None = None,
    outputs: list[list[Any]] | None = None,
    on_run: Callable[[str], None] = lambda text: None,
) -> Trial:
    """Load a model and run it on each feed.

    One session serves for the outputs, the list of kernels and, once profiling has ended, for
    timing; loading is what takes longest on large graphs.

    Args:
        worker: Where to run it.
        model: Path of the model.
        feeds: Inputs of each run.
        threads: Threads for one operator.
        seconds: Time to spend on timing the first feed; 0 for none.
        level: The runtime's optimization level.
        keep_open: Leave the session open for a `race`.
        info: A session that is open already, with profiling.
        outputs: What that session gave for the feeds already.
        on_run: Told which run of how many begins, such as ``2 of 8``.

    Raises:
        RuntimeRefusalError: When the runtime does not load or run it.
        RuntimeCrashError: When the process dies or hangs.
    """
    if info is None:
        info = worker.open(model, threads=threads, level=level, profile=True)
    generation: int | None = worker.generation
    try:
        if outputs is None:
            outputs = []
            for number, feed in enumerate(feeds, start=1):
                on_run(f"{number:,} of {len(feeds):,}")
                outputs.append(worker.run(info.session, feed))
        kernels = worker.kernels(info.session)
        times = worker.time([info.session], feeds[0], seconds, 3)[0] if seconds and feeds else []
    except BaseException:
        keep_open = False
        raise
    finally:
        if not keep_open and worker.generation == generation:
            worker.close(info.session)
    return Trial(model, info, outputs, kernels, times, generation if keep_open else None)


def race(
    worker: Worker,
    trials: Sequence[Trial | str | os.PathLike[str]],
    feed: Feed,
    *,
    threads: int = 1,
    seconds: float = 1.0,
    enough: Callable[[list[list[float]]], bool] = lambda samples: False,
    on_part: Callable[[str], None] = lambda text: None,
) -> list[list[float]]:
    """Time models against each other on one feed, in turn and all loaded at once.

    Sessions that trials left open are used; other models are loaded for the race.

    Args:
        worker: Where to run them.
        trials: Trials, or paths of models.
        feed: Inputs of each run.
        threads: Threads for one operator, where a model is loaded here.
        seconds: Time to spend on runs.
        enough: Asked now and then whether the samples so far will do.
        on_part: Told which part of how many begins, such as ``2 of 4``.

    Returns:
        Seconds for one run, by model and round.
    """
    worker.start()
    sessions: list[int] = []
    opened: list[int] = []
    for trial in trials:
        if isinstance(trial, Trial) and trial.generation == worker.generation:
            sessions.append(trial.info.session)
        else:
            path = trial.model if isinstance(trial, Trial) else trial
            opened.append(worker.open(path, threads=threads).session)
            sessions.append(opened[-1])
    try:
        samples: list[list[float]] = [[] for _ in sessions]
        with quiet():
            for heat in range(_HEATS):
                on_part(f"{heat + 1} of {_HEATS}")
                times = worker.time(sessions, feed, seconds / _HEATS, _LEAST_ROUNDS)
                for known, new in zip(samples, times, strict=True):
                    known.extend(new)
                if enough(samples):
                    break
        return samples
    finally:
        for session in opened:
            worker.close(session)
