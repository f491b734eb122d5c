"""Observing by a crew: each worker runs the model on whole pieces of the samples."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pathlib
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from onnxopt.calibration.lots import Lots, bound_of
from onnxopt.calibration.pieces import pieces
from onnxopt.calibration.sweep import PackedSeen, Seen, Sweep, step_text
from onnxopt.calibration.watch import TensorWatch
from onnxopt.data import Portable
from onnxopt.errors import RuntimeCrashError
from onnxopt.parallel import Crew
from onnxopt.runtime.worker import Worker, shared_worker

__all__ = ["get_ready", "observed_by_crew"]

Feed = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A job.

    Attributes:
        sweep: Tells this sweep from others, so that a worker knows whether it has the model open.
        start: Position of its first sample.
        stop: Position after its last.
        feeds: The samples themselves, or where the worker can read them.
        watches: What to watch, by tensor name.
        threads: Threads for one operator.
        bound: What is known of the lots that count; see `Lots`.
        let_through: See `Sweep`.
        folder: Where both sides have files, for what was seen; None where they share none.
    """

    sweep: str
    start: int
    stop: int
    feeds: list[Feed] | Portable
    watches: Mapping[str, TensorWatch]
    threads: int
    bound: int
    let_through: bool
    folder: pathlib.Path | None

    def read(self) -> Iterable[Feed]:
        """The samples."""
        if isinstance(self.feeds, Portable):
            return self.feeds.at(range(self.start, self.stop))
        return self.feeds


def get_ready(crew: Crew) -> None:
    """Have workers load what observing needs, and start the runtime, while others do their work."""
    crew.prepare(_get_ready)


def observed_by_crew(
    crew: Crew,
    model: pathlib.Path,
    samples: Iterable[Feed],
    watches: Mapping[str, TensorWatch],
    threads: int,
    on_step: Callable[[str], None],
    *,
    let_through: bool,
) -> Seen:
    """Run the model on samples and merge what is seen of the pieces in their order.

    Samples in files are read by the workers. Others are read here, and no more of them at once than
    the workers are busy with.

    Raises:
        CalibrationError: When a tensor cannot be observed; names it and the sample.
        RuntimeRefusalError: When the runtime does not take the model or a sample.
        RuntimeCrashError: When it dies.
        WorkerLostError: When workers are lost again and again.
    """
    total = Seen(0, 0, copy.deepcopy(dict(watches)))  # jobs take watches that have seen nothing
    count = samples.count() if isinstance(samples, Portable) else None
    on_step(step_text(0, count))
    with tempfile.TemporaryDirectory(prefix="onnxopt-seen-") as folder:
        shared = pathlib.Path(folder) if crew.is_here else None
        jobs = _jobs(samples, watches, threads, let_through, shared)
        for seen in crew.map(_observe, jobs, model=model):
            total.merge(seen.unpacked())
            on_step(step_text(total.samples, count))
    return total


def _jobs(
    samples: Iterable[Feed],
    watches: Mapping[str, TensorWatch],
    threads: int,
    let_through: bool,
    folder: pathlib.Path | None,
) -> Iterator[_Piece]:
    sweep = secrets.token_hex(8)

    def piece(start: int, stop: int, feeds: list[Feed] | Portable, bound: int) -> _Piece:
        return _Piece(sweep, start, stop, feeds, watches, threads, bound, let_through, folder)

    if isinstance(samples, Portable) and samples.seekable:
        count = samples.count()
        bound = Lots().bound if count is None else bound_of(count)
        for start, stop in pieces(count):
            yield piece(start, stop, samples, bound)
        return
    coming, lots = iter(samples), Lots()
    for start, stop in pieces():
        feeds = list(itertools.islice(coming, stop - start))
        if not feeds:
            return
        yield piece(start, start + len(feeds), feeds, lots.bound)
        for place in range(start, start + len(feeds)):
            lots.draw(place)


#: The sweep that each thread of this process works on, with its name.
_current = threading.local()


def _get_ready(model: pathlib.Path | bytes | None, job: None) -> None:
    del model, job
    _runtime().start()


def _runtime() -> Worker:
    """Where this thread runs models."""
    return shared_worker(f"crew {threading.get_ident()}")


def _observe(model: pathlib.Path | bytes | None, piece: _Piece) -> PackedSeen:
    """Do a job, in a process of the crew; once more where the runtime was killed."""
    assert model is not None
    try:
        return _seen(model, piece)
    except RuntimeCrashError:
        return _seen(model, piece)


def _seen(model: pathlib.Path | bytes, piece: _Piece) -> PackedSeen:
    # What is begun twice must not meet in one file.
    target = None if piece.folder is None else piece.folder / secrets.token_hex(8)
    return _sweep(model, piece).one_piece(piece.read(), piece.start, Lots(piece.bound), target)


def _sweep(model: pathlib.Path | bytes, piece: _Piece) -> Sweep:
    """The model, which stays open from piece to piece and makes room for the next."""
    known: tuple[str, Sweep] | None = getattr(_current, "sweep", None)
    if known is not None:
        name, sweep = known
        if name == piece.sweep and sweep.open:
            return sweep
        sweep.close()
    sweep = Sweep(model, piece.watches, _runtime(), piece.threads, let_through=piece.let_through)
    _current.sweep = (piece.sweep, sweep)
    return sweep
