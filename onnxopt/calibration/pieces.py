"""How samples are parted: always alike, however many workers there are and samples to come."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["pieces"]

#: Samples of a piece at first. Few, so that small data keeps several workers busy; not one, since
#: what was seen of a piece has to travel and be merged, 100 MB where Gram matrices are asked for.
_FIRST = 64
#: A piece is this part of all before it, once that is more, so that pieces stay few; but only up to
#: this size, or the last ones would keep some workers busy when the others have finished, and much
#: would be lost with a worker.
_SHARE = 64
_MOST = 1024


def pieces(count: int | None = None) -> Iterator[tuple[int, int]]:
    """Where pieces begin and end, in order.

    Args:
        count: How many samples there are; without it the pieces never end.
    """
    start = 0
    while count is None or start < count:
        stop = start + min(max(_FIRST, start // _SHARE), _MOST)
        yield start, stop if count is None else min(stop, count)
        start = stop
