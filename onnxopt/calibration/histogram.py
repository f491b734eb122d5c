"""Histograms of a fixed number of bins, whose merging is exact.

Bins are as wide as a power of two and begin at its multiples, so a wider bin is exactly two
narrower ones: whatever the order in which samples come, the counts are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation
from onnxopt.calibration.observer import Observer, ObserverSpec

__all__ = ["Histogram", "HistogramObserver"]

Array = np.ndarray[Any, Any]

#: The exponent of the bins before anything but zeros was seen; below that of any float64.
_NOTHING = -2000
#: Powers of two that float32 holds with room to spare.
_SAFE_POWER = 100
#: Numbers are taken in runs of so many: one line of a processor's cache.
_RUN = 16
#: So many samples are counted at once, which takes little longer than counting one.
_MOST_PENDING = 8
#: What is left of a bin's width, at least, where the extremes cut it.
_LEAST_WIDTH = 1e-3


class HistogramObserver(Observer):
    """Counts by magnitude and sign.

    Bin ``i`` counts the numbers x of which ``trunc(x / width)`` is i: for i > 0 those in
    ``[i * width, (i + 1) * width)``, for i < 0 the same mirrored, for 0 those between -width and
    width. The width is the least power of two for which all numbers have a bin.

    Args:
        bins: Bins of either sign, a power of two.
        most: Count at most so many numbers of a tensor in each sample, in short runs that are
            evenly spread; the extremes are of all numbers.

    Attributes:
        counts: int64 [2 * bins]; bin i stands at bins + i.
        exponent: The width of a bin is 2 to the power of it.
        zeros: How many of the numbers in bin 0 are 0.
        low: Least number that was seen.
        high: Greatest number that was seen.
    """

    def __init__(self, bins: int, most: int) -> None:
        self.bins, self.most = bins, most
        self._counts = np.zeros(2 * bins, np.int64)
        self._zeros = 0
        self._pending: list[Array] = []
        self.exponent = _NOTHING
        self.low, self.high = math.inf, -math.inf
        self._room = 0.0  # the greatest magnitude that has a bin

    @property
    def counts(self) -> Array:  # noqa: D102 - see the class
        self._settle()
        return self._counts

    @property
    def zeros(self) -> int:  # noqa: D102 - see the class
        self._settle()
        return self._zeros

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    def density(self) -> tuple[Array, Array]:
        """Where the numbers that are not 0 lie, evenly spread within bins and within the extremes.

        Returns:
            Ascending edges, float64 [2 * bins], and probability divided by width between them,
            [2 * bins - 1]. What is missing to an integral of 1 is the share of zeros.
        """
        index = np.arange(-self.bins, self.bins + 1, dtype=np.float64)
        # An extreme may be the only number of its bin, often (where a Clip cuts off).
        slack = self.width * _LEAST_WIDTH
        edges = np.delete(index, self.bins) * self.width
        edges = np.clip(edges, self.low - slack, self.high + slack)
        counts = self.counts[1:].astype(np.float64)  # nothing reaches the outermost negative bin
        counts[self.bins - 1] -= self.zeros
        widths = np.diff(edges)
        share = np.divide(counts, widths, out=np.zeros_like(widths), where=widths > 0)
        return edges, share / max(1, self.total)

    def update(self, activation: Activation) -> None:  # noqa: D102
        low, high = activation.extremes
        self._widen(low, high)
        self._pending.append(_chosen(activation.numbers, self.most))
        if len(self._pending) >= _MOST_PENDING:
            self._settle()

    def _settle(self) -> None:
        """Count what is pending. When it is counted makes no difference, as with merging."""
        if not self._pending:
            return
        chosen = np.concatenate(self._pending)
        self._pending.clear()
        if abs(self.exponent) > _SAFE_POWER:
            chosen = chosen.astype(np.float64)
        scale = chosen.dtype.type(math.ldexp(1.0, -max(self.exponent, -1000)))
        self._zeros += int(np.count_nonzero(chosen == 0))
        index = (chosen * scale).astype(np.intp)
        index += self.bins
        self._counts += np.bincount(index, minlength=2 * self.bins)

    def merge(self, other: Self) -> None:  # noqa: D102
        if (self.bins, self.most) != (other.bins, other.most):
            raise ValueError("histograms of different settings do not merge")
        if other.low > other.high:
            return
        self._settle()
        self._widen(other.low, other.high)
        self._zeros += other.zeros
        self._counts += _coarser(other.counts, self.exponent - other.exponent)

    def _widen(self, low: float, high: float) -> None:
        """Make room for numbers from low to high."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        greatest = max(-self.low, self.high)
        if greatest <= self._room:
            return
        exponent = math.frexp(greatest)[1] - self.bins.bit_length() + 1
        if exponent > self.exponent:
            self._counts = _coarser(self._counts, exponent - self.exponent)
            self.exponent = exponent
        self._room = math.nextafter(self.bins * self.width, 0.0)

    def arrays(self) -> dict[str, Array]:  # noqa: D102
        return {
            "counts": self.counts,
            "settings": np.array([self.exponent, self.most, self.zeros]),
            "extremes": np.array([self.low, self.high]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:  # noqa: D102
        exponent, most, zeros = map(int, arrays["settings"])
        made = cls(len(arrays["counts"]) // 2, most)
        made._counts, made.exponent, made._zeros = arrays["counts"], exponent, zeros
        made.low, made.high = map(float, arrays["extremes"])
        return made


@dataclasses.dataclass(frozen=True)
class Histogram(ObserverSpec[HistogramObserver]):
    """Ask for a histogram; see `HistogramObserver`."""

    kind: ClassVar[str] = "histogram"
    observer: ClassVar[type[Observer]] = HistogramObserver
    bins: int = 2048
    most: int = 4096

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins & (self.bins - 1) or self.most < 1:
            raise ValueError("a histogram has a power of two of bins and counts at least 1 number")

    @property
    def takes_blocks(self) -> bool:  # noqa: D102 - others are counted, but as many
        return True

    def start(self) -> HistogramObserver:  # noqa: D102
        return HistogramObserver(self.bins, self.most)


def _coarser(counts: Array, doublings: int) -> Array:
    """The counts in bins that are 2^doublings times as wide."""
    bins = len(counts) // 2
    if doublings <= 0:
        return counts
    magnitude = np.abs(np.arange(-bins, bins))
    shifted = magnitude >> min(doublings, 62)
    target = np.where(np.arange(2 * bins) < bins, -shifted, shifted) + bins
    coarse = np.zeros_like(counts)
    np.add.at(coarse, target, counts)
    return coarse


def _chosen(flat: Array, most: int) -> Array:
    """A copy of at most ``most`` of the numbers, [N]."""
    if len(flat) <= most:
        return flat.copy()
    run = min(_RUN, most)
    runs = flat[: len(flat) // run * run].reshape(-1, run)
    return np.asarray(runs[:: _stride(len(runs), most // run)].reshape(-1))


@functools.lru_cache(1024)
def _stride(size: int, most: int) -> int:
    """A step that leaves at most ``most`` of so many and does not fall in with any axis."""
    step = -(-size // most)
    while step > 1 and math.gcd(step, size) > 1:
        step += 1
    return step
