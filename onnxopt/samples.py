"""Samples that are read anew each time they are gone through, and never all held in memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from onnxopt.data import Feed, Portable

__all__ = ["Samples", "held_out", "split"]

#: One sample of so many is kept back to judge with.
_HELD_OUT_EVERY = 4


def _all(position: int) -> bool:
    del position
    return True


@dataclasses.dataclass(frozen=True)
class Samples(Portable):
    """A stream of feeds that can be read again and again.

    Attributes:
        read: Begins to read from the start. Where it is `Portable` and ``keeps`` a function of a
            module, the samples can be pickled.
        keeps: Whether a sample belongs to these, by its position in what is read.
    """

    read: Callable[[], Iterable[Feed]]
    keeps: Callable[[int], bool] = _all

    def __iter__(self) -> Iterator[Feed]:
        for position, feed in enumerate(self.read()):
            if self.keeps(position):
                yield feed

    def __call__(self) -> Iterator[Feed]:
        """Begin to read from the start: samples may be parted again."""
        return iter(self)

    def first(self, count: int) -> list[Feed]:
        """The first ``count`` feeds, or fewer if there are no more."""
        return list(itertools.islice(self, count))

    @property
    def seekable(self) -> bool:
        """Whether other processes can read any part of them by themselves."""
        return isinstance(self.read, Portable) and self.read.seekable

    def count(self) -> int | None:
        """How many there are; None where that is not known before they are read."""
        total = self.read.count() if isinstance(self.read, Portable) else None
        return None if total is None else sum(map(self.keeps, range(total)))

    def place(self, number: int) -> str:
        """What the user knows a sample by: its place in all that is read, given its number here."""
        own = filter(self.keeps, itertools.count())
        position = next(itertools.islice(own, number - 1, None))
        if isinstance(self.read, Portable):
            return self.read.place(position + 1)
        return super().place(position + 1)

    def at(self, positions: Iterable[int]) -> Iterator[Feed]:
        """The samples at ascending positions among these, where they are `seekable`."""
        assert isinstance(self.read, Portable)
        own = filter(self.keeps, itertools.count())
        return self.read.at(_picked(own, iter(positions)))


def split(read: Callable[[], Iterable[Feed]]) -> tuple[Samples, Samples]:
    """Part samples into those to calibrate on and those to judge with: every fourth.

    With fewer than four there is nothing to keep back, and both are all of them.
    """
    if len(Samples(read).first(_HELD_OUT_EVERY)) < _HELD_OUT_EVERY:
        return Samples(read), Samples(read)
    return Samples(read, _kept), Samples(read, held_out)


def held_out(position: int) -> bool:
    """Whether the sample at a position is kept back."""
    return position % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


def _kept(position: int) -> bool:
    return not held_out(position)


def _picked(numbers: Iterator[int], places: Iterator[int]) -> Iterator[int]:
    """Of ascending numbers those that stand at ascending places."""
    place = 0
    for wanted in places:
        yield next(itertools.islice(numbers, wanted - place, None))
        place = wanted + 1
