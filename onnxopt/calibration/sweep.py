"""A model that runs on samples while its tensors are watched."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from onnxopt.calibration.fingerprint import DIGEST_MODULUS, feed_digest
from onnxopt.calibration.lots import Lots, bound_of
from onnxopt.calibration.pieces import pieces
from onnxopt.calibration.watch import TensorWatch
from onnxopt.data import Portable
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError, SampleError
from onnxopt.runtime.worker import Worker

__all__ = ["PackedSeen", "Seen", "Sweep", "step_text"]

Feed = Mapping[str, Any]


@dataclasses.dataclass
class Seen:
    """What was seen of some samples.

    Attributes:
        samples: How many they were.
        digest: Sum of their hashes, modulo 2^64.
        watches: The watches, by tensor name.
    """

    samples: int
    digest: int
    watches: dict[str, TensorWatch]

    def merge(self, other: Seen) -> None:
        """Take in what was seen of the samples that come next.

        Raises:
            CalibrationError: When the two do not go together; names the tensor and the sample.
        """
        self.samples += other.samples
        self.digest = (self.digest + other.digest) % DIGEST_MODULUS
        for name, watch in self.watches.items():
            _check({name: watch.merge(other.watches[name])}, self.samples)


@dataclasses.dataclass(frozen=True)
class PackedSeen:
    """What was seen of some samples, as it travels: with the pickle of the watches, or its file."""

    samples: int
    digest: int
    watches: bytes | pathlib.Path

    def unpacked(self) -> Seen:
        """As it can be looked at; a file is read once and then gone."""
        if isinstance(self.watches, bytes):
            return Seen(self.samples, self.digest, pickle.loads(self.watches))
        with self.watches.open("rb") as file:
            watches = pickle.load(file)
        self.watches.unlink()
        return Seen(self.samples, self.digest, watches)


class Sweep:
    """A session of the model, open while the context lasts.

    Args:
        model: The model, of which everything that is watched is an input or output: its path, or
            its bytes.
        watches: What to watch, by name; of several objections to a sample the first one's is told.
        worker: Where to run it.
        threads: Threads for one operator.
        let_through: Whether the runtime may have tensors in blocks of channels, which are then
            watched as they are.

    Raises:
        RuntimeRefusalError: When the runtime does not take the model.
        RuntimeCrashError: When it dies.
    """

    def __init__(
        self,
        model: pathlib.Path | bytes,
        watches: Mapping[str, TensorWatch],
        worker: Worker,
        threads: int,
        *,
        let_through: bool,
    ) -> None:
        self._worker, self._watches = worker, watches
        self._info = worker.open(model, threads=threads)
        if let_through:
            takes = [name for name, watch in watches.items() if watch.takes_blocks]
            worker.let_through(self._info.session, model, threads, takes)
        self._generation = worker.generation

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the session, if it is still there."""
        if self.open:
            with contextlib.suppress(RuntimeCrashError):
                self._worker.close(self._info.session)

    @property
    def open(self) -> bool:
        """Whether the session is still there."""
        return self._worker.generation == self._generation

    def all_pieces(self, samples: Iterable[Feed], on_step: Callable[[str], None]) -> Seen:
        """Run the model on samples, piece by piece.

        Raises:
            CalibrationError: When a tensor cannot be observed; names it and the sample.
            RuntimeRefusalError: When the runtime does not take a sample.
            RuntimeCrashError: When it dies.
        """
        self._worker.watch(self._info.session, self._watches)
        coming, seen = iter(samples), Seen(0, 0, {})
        count = samples.count() if isinstance(samples, Portable) else None
        lots = Lots() if count is None else Lots(bound_of(count))
        for start, stop in pieces():
            part = self._run(itertools.islice(coming, stop - start), start, lots, count, on_step)
            seen.samples, seen.digest = seen.samples + part[0], seen.digest + part[1]
            if part[0] < stop - start:
                break
        seen.digest %= DIGEST_MODULUS
        seen.watches = self._worker.watched(self._info.session)
        return seen

    def one_piece(
        self, feeds: Iterable[Feed], start: int, lots: Lots, target: pathlib.Path | None
    ) -> PackedSeen:
        """Run the model on the samples of one piece, with watches that have seen nothing.

        Args:
            feeds: The samples.
            start: How many come before them.
            lots: What they draw from.
            target: A file for the watches, where whoever asked can read it.

        Raises:
            CalibrationError: When a tensor cannot be observed; names it and the sample.
            RuntimeRefusalError: When the runtime does not take a sample.
            RuntimeCrashError: When it dies.
        """
        self._worker.watch(self._info.session, self._watches)
        samples, digest = self._run(feeds, start, lots, None, lambda step: None)
        if target is None:
            return PackedSeen(samples, digest, self._worker.watched_packed(self._info.session))
        self._worker.watched_into(self._info.session, target)
        return PackedSeen(samples, digest, target)

    def _run(
        self,
        feeds: Iterable[Feed],
        start: int,
        lots: Lots,
        count: int | None,
        on_step: Callable[[str], None],
    ) -> tuple[int, int]:
        """Run one piece and end it; the number of its samples, and the sum of their hashes."""
        session, digest, number = self._info.session, 0, start
        for number, feed in enumerate(feeds, start=start + 1):
            on_step(step_text(number, count))
            try:
                objections = self._worker.observe(session, feed, lots.draw(number - 1))
            except RuntimeRefusalError as error:
                raise RuntimeRefusalError(
                    f"the model does not take sample {number}: {error}"
                ) from error
            except RuntimeCrashError as error:
                raise RuntimeCrashError(f"sample {number}: {error}") from error
            _check({name: objections.get(name) for name in self._watches}, number)
            digest += feed_digest(feed)
        settled = self._worker.settle(session)
        _check({name: settled.get(name) for name in self._watches}, number)
        return number - start, digest


def step_text(number: int, count: int | None) -> str:
    """How far it is."""
    return f"observing sample {number:,}" + ("" if count is None else f" of {count:,}")


def _check(objections: Mapping[str, str | None], number: int) -> None:
    for tensor, objection in objections.items():
        if objection:
            raise SampleError(f"tensor '{tensor}' {objection}", number)
