"""How samples are parted: always alike, however many workers there are and samples to come."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["pieces"]

#: Samples of a piece at first. Few, so that small data keeps several workers busy; not one, since
#: what was seen of a piece has to travel and be merged.
_FIRST = 16
#: A piece is this part of all before it, once that is more, so that the number of pieces grows with
#: the logarithm of the number of samples.
_SHARE = 64


def pieces(count: int | None = None) -> Iterator[tuple[int, int]]:
    """Where pieces begin and end, in order.

    Args:
        count: How many samples there are; without it the pieces never end.
    """
    start = 0
    while count is None or start < count:
        stop = start + max(_FIRST, start // _SHARE)
        yield start, stop if count is None else min(stop, count)
        start = stop
