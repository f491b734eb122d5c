"""Samples that are read anew each time they are gone through, and never all held in memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from onnxopt.data import Feed

__all__ = ["Samples", "held_out", "split"]

#: One sample of so many is kept back to judge with.
_HELD_OUT_EVERY = 4


@dataclasses.dataclass(frozen=True)
class Samples:
    """A stream of feeds that can be read again and again.

    Attributes:
        read: Begins to read from the start.
        keeps: Whether a sample belongs to these, by its position in what is read.
    """

    read: Callable[[], Iterable[Feed]]
    keeps: Callable[[int], bool] = lambda position: True

    def __iter__(self) -> Iterator[Feed]:
        for position, feed in enumerate(self.read()):
            if self.keeps(position):
                yield feed

    def first(self, count: int) -> list[Feed]:
        """The first ``count`` feeds, or fewer if there are no more."""
        return list(itertools.islice(self, count))


def split(read: Callable[[], Iterable[Feed]]) -> tuple[Samples, Samples]:
    """Part samples into those to calibrate on and those to judge with: every fourth.

    With fewer than four there is nothing to keep back, and both are all of them.
    """
    if len(Samples(read).first(_HELD_OUT_EVERY)) < _HELD_OUT_EVERY:
        return Samples(read), Samples(read)
    return Samples(read, lambda position: not held_out(position)), Samples(read, held_out)


def held_out(position: int) -> bool:
    """Whether the sample at a position is kept back."""
    return position % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
