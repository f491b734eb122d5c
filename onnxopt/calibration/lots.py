"""Which samples rows are kept of: those with the least lots.

Each sample draws a lot by its place in the stream. Whoever observes a part of the samples knows
from its place alone which of them may be among those with the least lots of all (bottom-k sampling,
Cohen and Kaplan 2007), and need not look at rows of the others.
"""

from __future__ import annotations

import heapq

import numpy as np

__all__ = ["DRAWN", "Lots", "bound_of", "lot_of"]

#: Rows are kept of so many samples: few, so that memory is the same for all but the smallest data.
DRAWN = 16
#: No lot is greater.
_GREATEST = 2**64 - 1
#: So many lots are drawn at once.
_TOGETHER = 1 << 18


class Lots:
    """Draws lots of samples in their order.

    Args:
        bound: A lot that is known not to be less than the greatest of those that count.
    """

    def __init__(self, bound: int = _GREATEST) -> None:
        self.bound = bound
        self._least: list[
            int
        ] = []  # of those drawn, as negative numbers: a heap has its least first

    def draw(self, place: int) -> int | None:
        """The lot of a sample; None when it cannot be among the least ones.

        Args:
            place: How many samples come before it.
        """
        lot = lot_of(place)
        if lot > self.bound:
            return None
        heapq.heappush(self._least, -lot)
        if len(self._least) > DRAWN:
            heapq.heappop(self._least)
        if len(self._least) == DRAWN:
            self.bound = min(self.bound, -self._least[0])
        return lot


def lot_of(place: int) -> int:
    """The lot of the sample at a place, of 64 bits: the same every time."""
    return int(_lots(np.array([place], np.uint64))[0])


def bound_of(count: int) -> int:
    """The greatest lot that rows are kept of, among so many samples."""
    if count <= DRAWN:
        return _GREATEST
    least = np.zeros(0, np.uint64)
    for start in range(0, count, _TOGETHER):
        places = np.arange(start, min(start + _TOGETHER, count), dtype=np.uint64)
        least = np.sort(np.concatenate([least, _lots(places)]))[:DRAWN]
    return int(least[-1])


def _lots(places: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) of each place."""
    mixed = (places + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
