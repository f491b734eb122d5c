"""How fast models load and run, and how much memory that takes, one against the other.

Times of runs come from rounds in which every model runs in turn, so that a drift of the machine's
speed falls on all of them; ratios are to the first model. Load time and memory come from a fresh
process for each model.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from onnxopt.data import Feed, FeedRequest, FeedSource
from onnxopt.errors import ModelError, OptionError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import bytes_on_disk, load
from onnxopt.runtime.footprint import Footprint, footprint
from onnxopt.runtime.probe import environment
from onnxopt.runtime.statistics import Latency, Ratio, latency, ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker

__all__ = ["BenchReport", "BenchRow", "bench"]

#: Models that take more than this together are timed one after the other.
_RACE_LIMIT_BYTES = 1 << 30
#: A timing has at least so many rounds.
_LEAST_ROUNDS = 11


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """What was measured of one model.

    Attributes:
        model: Its path.
        bytes: Size of the file and its external data.
        load_seconds: Shortest time that ONNX Runtime took to load it.
        peak_memory_bytes: Largest resident size of a process that loads it once and runs it once.
        load_memory_bytes: Largest resident size of such a process by the time the model is loaded.
        latency: Time for one run.
        ratio: How many times faster than the first model; None for the first.
    """

    model: str
    bytes: int
    load_seconds: float
    peak_memory_bytes: int
    load_memory_bytes: int
    latency: Latency
    ratio: Ratio | None


@dataclasses.dataclass(frozen=True)
class BenchReport:
    """A measurement of several models.

    Attributes:
        rows: One for each model, in the order given.
        idle_memory_bytes: Resident size of such a process before it loads a model.
        inputs: Shape of each input of the timed runs.
        paired: Whether the models ran in turn.
        environment: Machine and versions.
    """

    rows: tuple[BenchRow, ...]
    idle_memory_bytes: int
    inputs: dict[str, list[int]]
    paired: bool
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        document = dataclasses.asdict(self)
        for row, facts in zip(document["rows"], self.rows, strict=True):
            if facts.ratio is not None:
                row["ratio"]["is_noise"] = facts.ratio.is_noise
        return document


def bench(
    models: Sequence[str | os.PathLike[str]],
    *,
    data: pathlib.Path | None = None,
    request: FeedRequest | None = None,
    threads: int = 1,
    seconds: float = 1.0,
    on_step: Callable[[str], None] = lambda step: None,
) -> BenchReport:
    """Measure models on the first one's inputs.

    Args:
        models: Paths; ratios are to the first.
        data: Folder of ``.npz`` feeds or one ``.npz`` of stacked samples, of which the first is
            used; made up when None, and then the largest that was made up is used.
        request: What is fixed of a made-up feed.
        threads: Threads for one operator.
        seconds: Time to spend on each model's runs.
        on_step: Told what is being done.

    Raises:
        OnnxoptError: When a model cannot be read or run, or does not take the first one's inputs.
    """
    if not models:
        raise OptionError("name at least one model")
    paths = [pathlib.Path(model) for model in models]
    source = FeedSource(load(paths[0]), data, request)
    feed = _feed(paths[0], source, data is not None, threads)
    prints: list[Footprint] = []
    for number, path in enumerate(paths, start=1):
        on_step(f"loading model {number} of {len(paths)}, {path.name}")
        prints.append(_footprint(path, feed, threads))
    sizes = [bytes_on_disk(path) for path in paths]
    paired = sum(sizes) <= _RACE_LIMIT_BYTES
    samples = _samples(paths, feed, threads, seconds, paired, on_step)
    rows = [
        BenchRow(
            str(path),
            sizes[index],
            prints[index].load_seconds,
            prints[index].peak_memory_bytes,
            prints[index].load_memory_bytes,
            latency(samples[index]),
            None if index == 0 else ratio(samples[0], samples[index]),
        )
        for index, path in enumerate(paths)
    ]
    return BenchReport(
        tuple(rows),
        prints[-1].idle_memory_bytes,
        {name: list(getattr(value, "shape", ())) for name, value in feed.items()},
        paired,
        environment(threads),
    )


def _feed(path: pathlib.Path, source: FeedSource, from_data: bool, threads: int) -> Feed:
    with Worker() as worker:
        session = _open(worker, path, threads)
        limit = 1 if from_data else 8
        return source.feeds(lambda feed: worker.run(session, feed), limit)[-1]


def _footprint(path: pathlib.Path, feed: Feed, threads: int) -> Footprint:
    try:
        return footprint(path, feed, threads)
    except (RuntimeRefusalError, RuntimeCrashError) as error:
        raise ModelError(f"{path} cannot be measured: {error}") from error


def _samples(
    paths: Sequence[pathlib.Path],
    feed: Feed,
    threads: int,
    seconds: float,
    paired: bool,
    on_step: Callable[[str], None],
) -> list[list[float]]:
    """Seconds for one run, by model and round; as many rounds for each."""
    if paired:
        with Worker() as worker:
            return race(
                worker,
                paths,
                feed,
                threads=threads,
                seconds=seconds * len(paths),
                on_part=lambda text: on_step(f"timing, part {text}"),
            )
    samples: list[list[float]] = []
    for number, path in enumerate(paths, start=1):
        on_step(f"timing model {number} of {len(paths)}")
        with Worker() as worker:
            session = _open(worker, path, threads)
            samples.extend(worker.time([session], feed, seconds, _LEAST_ROUNDS))
    rounds = min(map(len, samples))
    return [each[:rounds] for each in samples]


def _open(worker: Worker, path: pathlib.Path, threads: int) -> int:
    try:
        return worker.open(path, threads=threads).session
    except (RuntimeRefusalError, RuntimeCrashError) as error:
        raise ModelError(f"ONNX Runtime refuses {path}: {error}") from error
