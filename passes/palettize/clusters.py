"""Few numbers that stand for many, with the least squared error that k-means finds."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["clustered"]

Array = np.ndarray[Any, Any]

_STEPS = 30


def clustered(numbers: Array, count: int) -> Array:
    """Replace each number by the mean of its cluster; zeros stay zeros, and are one cluster.

    Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982) on sorted numbers, where clusters are
    intervals. It starts from quantiles of the cube root of the density, which is the best spacing
    of many levels (Panter and Dite, 1951), approximated by quantiles of the numbers and an even
    grid, half and half.

    Args:
        numbers: Finite numbers, as a vector of float64.
        count: Most different numbers in the result.
    """
    zero = numbers == 0
    rest = numbers[~zero]
    levels = count - bool(zero.any())
    result = np.zeros_like(numbers)
    if len(np.unique(rest)) <= levels:
        return numbers
    if levels == 0:
        return result
    ordered = np.sort(rest)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    places = (np.arange(levels) + 0.5) / levels
    even = ordered[0] + places * (ordered[-1] - ordered[0])
    centres = (np.quantile(ordered, places) + even) / 2
    for _ in range(_STEPS):
        centres = np.unique(centres)
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], ends, [ordered.size]])
        sizes = np.diff(ends)
        means = np.diff(sums[ends])[sizes > 0] / sizes[sizes > 0]
        if means.shape == centres.shape and np.allclose(means, centres, rtol=1e-9, atol=0):
            break
        centres = means
    result[~zero] = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, rest)]
    return result
