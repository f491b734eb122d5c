"""From paired, interleaved timings to a ratio with its spread, and the word "noise" where it fits.

The machine's speed drifts and other work comes and goes, so a single time says little. Rounds that
time both models one after the other give ratios whose median is steady; the confidence interval of
the median comes from order statistics and assumes no distribution (Conover, Practical
Nonparametric Statistics, section 3.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["Latency", "Ratio", "latency", "ratio", "undisturbed"]

#: Ratios closer to 1 than this are nothing that a user would notice or another run confirm.
_INDIFFERENCE = 0.02


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time for one run, in seconds.

    Attributes:
        median: Median over the rounds.
        low: 10th percentile.
        high: 90th percentile.
        rounds: Number of rounds.
    """

    median: float
    low: float
    high: float
    rounds: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster the second model is than the first.

    Attributes:
        median: Median of first / second over the rounds; above 1 the second is faster.
        low: Lower end of the median's confidence interval (at least 95 %).
        high: Its upper end.
    """

    median: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval allows that there is no difference worth a word."""
        return self.low < 1 + _INDIFFERENCE and self.high > 1 - _INDIFFERENCE

    @property
    def is_slower(self) -> bool:
        """Whether the second model is certainly slower."""
        return self.high <= 1 - _INDIFFERENCE

    @property
    def is_faster(self) -> bool:
        """Whether the second model is certainly faster."""
        return self.low >= 1 + _INDIFFERENCE


def undisturbed(samples: Sequence[float]) -> float:
    """Mean of the faster third: what other work on the machine left alone."""
    third = np.sort(np.asarray(samples))[: (len(samples) + 2) // 3]
    return float(third.mean())


def latency(samples: Sequence[float]) -> Latency:
    """Summarize the times of one model."""
    low, median, high = np.percentile(samples, [10, 50, 90])
    return Latency(float(median), float(low), float(high), len(samples))


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Summarize paired times of two models."""
    ratios = np.sort(np.asarray(first) / np.asarray(second))
    count = len(ratios)
    # Ranks r and n + 1 - r hold the median with probability 1 - 2 P(Binomial(n, 1/2) < r).
    tail, rank = 0.0, 0
    while rank < (count - 1) // 2 and (tail := tail + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    rank = max(rank - 1, 0) if tail > 0.025 else rank
    return Ratio(float(np.median(ratios)), float(ratios[rank]), float(ratios[count - 1 - rank]))
