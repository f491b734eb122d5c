"""Which range a tensor's grid should reach over, from what one pass over the data has seen.

Each choice takes what was seen and the levels, and gives a grid. `CHOICES` are those that need
nothing but a histogram; `best_for_consumers` judges grids by the error they cause where the tensor
is used, which is what counts: a tensor's own error weighs all numbers alike, its consumers do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.calibration.histogram import HistogramObserver
from onnxopt.calibration.range import RangeObserver
from onnxopt.numerics.grids import Grid, Levels, grid_over
from onnxopt.numerics.histogram_error import clipping_error, rounding_and_clipping_error

__all__ = [
    "CHOICES",
    "best_for_consumers",
    "candidates",
    "consumer_error",
    "entropy",
    "least_error",
    "mean_range",
    "min_max",
    "percentile",
    "tensor_error",
]

Array = np.ndarray[Any, Any]

#: Quantile of the magnitudes beyond which percentile ranges cut, by default.
_PERCENTILE = 99.99
#: How far an end is drawn in when a range is searched, as factors.
_SHRINKS = tuple(float(each) for each in np.geomspace(1.0, 0.05, 37))
#: Rounds of drawing in one end after the other.
_SEARCH_ROUNDS = 3
#: Thresholds that the entropy method tries.
_ENTROPY_THRESHOLDS = 96
#: What the grid does not know of would count as infinitely unlikely; others smooth with the same.
_LEAST_PROBABILITY = 1e-4
#: Where an end falls on a number that is there very often, cutting off all beyond looks harmless.
_MOST_CLIPPED = 0.001
#: Ends are drawn in by this factor, again and again, while it helps the consumers.
_CONSUMER_SHRINK = 0.88


def min_max(histogram: HistogramObserver, levels: Levels) -> Grid:
    """From the least to the greatest number: nothing is clipped."""
    return _over(histogram, 1.0, 1.0, levels)


def mean_range(observer: RangeObserver, levels: Levels) -> Grid:
    """From the mean of the samples' least numbers to that of their greatest.

    This is the moving average of others, but does not depend on the order of the samples.
    """
    return grid_over(*observer.mean_range, levels)


def percentile(histogram: HistogramObserver, levels: Levels, percent: float = _PERCENTILE) -> Grid:
    """Without the least and the greatest numbers: half of what is over 100 percent at either end.

    For symmetric levels, the percentile of the magnitudes.
    """
    if levels.symmetric:
        bound = _magnitude_quantile(histogram, percent / 100)
        return grid_over(-bound, bound, levels)
    tail = (1 - percent / 100) / 2
    return grid_over(_quantile(histogram, tail), _quantile(histogram, 1 - tail), levels)


def least_error(histogram: HistogramObserver, levels: Levels) -> Grid:
    """The range with the least mean squared error of the tensor, rounding and clipping together.

    Both ends are drawn in together, then one after the other, until nothing gets better.
    """
    density = histogram.density()
    tried: dict[tuple[float, float], float] = {}

    def error(ends: tuple[float, float]) -> float:
        if ends not in tried:
            grid = _over(histogram, *ends, levels)
            tried[ends] = rounding_and_clipping_error(*density, grid)
        return tried[ends]

    best = min(((each, each) for each in _SHRINKS), key=error)
    for _ in range(0 if levels.symmetric else _SEARCH_ROUNDS):
        before = best
        best = min(((each, best[1]) for each in _SHRINKS), key=error)
        best = min(((best[0], each) for each in _SHRINKS), key=error)
        if best == before:
            break
    return _over(histogram, *best, levels)


def entropy(histogram: HistogramObserver, levels: Levels) -> Grid:
    """The range that loses the least information, by the Kullback-Leibler divergence.

    The distribution within a range, with what lies outside added at its ends, is compared to the
    same distribution when it is known no finer than the levels (S. Migacz, "8-bit inference with
    TensorRT", 2017). Magnitudes over a threshold are cut off; numbers that are 0 stay out of it,
    since every grid has them.
    """
    edges, density = histogram.density()
    mass = density * np.diff(edges)
    if mass.sum() <= 0:
        return min_max(histogram, levels)
    best, least = 1.0, math.inf
    for share in np.linspace(1.0, 1 / _ENTROPY_THRESHOLDS, _ENTROPY_THRESHOLDS):
        divergence = _divergence(edges, mass, _within(histogram, float(share), levels))
        if divergence < least:
            best, least = float(share), divergence
    return _within(histogram, best, levels)


#: Choices by name that a histogram is enough for.
CHOICES: Mapping[str, Callable[[HistogramObserver, Levels], Grid]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": least_error,
}


def tensor_error(histogram: HistogramObserver, grid: Grid) -> float:
    """Mean squared error that a grid makes of the tensor."""
    return rounding_and_clipping_error(*histogram.density(), grid)


def candidates(
    histogram: HistogramObserver, levels: Levels, observer: RangeObserver | None = None
) -> dict[str, Grid]:
    """Grids that are worth being judged at the consumer, by name; min-max comes first."""
    grids = {name: choose(histogram, levels) for name, choose in CHOICES.items()}
    for percent in (99.9, 99.999):
        grids[f"percentile {percent}"] = percentile(histogram, levels, percent)
    if observer is not None and observer.samples:
        grids["mean range"] = mean_range(observer, levels)
    return grids


def consumer_error(
    grid: Grid,
    rows: Array,
    weights: Sequence[Array],
    histogram: HistogramObserver | None = None,
    *,
    centred: bool = False,
) -> float:
    """Power of the noise that a grid of the input causes in the outputs of linear layers.

    Rows are few, and may miss what is clipped seldom but matters when it is: what clipping does to
    numbers beyond those of the rows is added from the histogram, as if it fell on all weights
    alike.

    Args:
        grid: The grid of the layers' input.
        rows: Rows of the input, [R, groups, K]; the same for all layers.
        weights: Weights of each layer, [groups, K, M].
        histogram: Of the input.
        centred: Leave out the mean error of each output, which a corrected bias takes away.

    Returns:
        Mean over the rows of the squared error, summed over all outputs.
    """
    turned = rows.transpose(1, 0, 2)
    errors = grid.round(turned) - turned
    if centred and len(rows):
        errors = errors - errors.mean(axis=1, keepdims=True)
    count = max(1, len(rows))
    noise = sum(float(np.square(errors @ each).sum(dtype=np.float64)) for each in weights) / count
    if histogram is not None and turned.size:
        edges, density = histogram.density()
        slack = histogram.width  # numbers of one bin are not told apart
        unseen = (edges[:-1] > turned.max() + slack) | (edges[1:] < turned.min() - slack)
        clipped = clipping_error(edges, density * unseen, grid.least, grid.greatest)
        noise += clipped * sum(float(np.square(each).sum(dtype=np.float64)) for each in weights)
    return noise


def best_for_consumers(
    histogram: HistogramObserver,
    levels: Levels,
    rows: Array,
    weights: Sequence[Array],
    observer: RangeObserver | None = None,
    *,
    centred: bool = False,
) -> tuple[str, Grid, float]:
    """The grid with the least `consumer_error`.

    All `candidates` are tried, then the best one's ends are drawn in, one after the other, as long
    as that helps. The first of equals wins, so that ranges are not cut for nothing.

    Args:
        histogram: Of the input of the layers.
        levels: The integers.
        rows: Rows of that input, [R, groups, K].
        weights: Weights of each layer, [groups, K, M].
        observer: Of the input, for its mean range.
        centred: Leave out the mean error of each output: where biases are corrected afterwards.

    Returns:
        Name of the choice, the grid, and its error.
    """

    def error(grid: Grid) -> float:
        return consumer_error(grid, rows, weights, histogram, centred=centred)

    grids = candidates(histogram, levels, observer)
    errors = {name: error(grid) for name, grid in grids.items()}
    name = min(errors, key=errors.__getitem__)
    best, least = grids[name], errors[name]
    for low, high in ((1.0, _CONSUMER_SHRINK), (_CONSUMER_SHRINK, 1.0)):
        while True:
            tried = grid_over(best.least * low, best.greatest * high, levels)
            noise = math.inf if tried == best else error(tried)
            if noise >= least:
                break
            name, best, least = "drawn in", tried, noise
    return name, best, least


def _over(histogram: HistogramObserver, low: float, high: float, levels: Levels) -> Grid:
    """A grid over the extremes times factors."""
    if histogram.low > histogram.high:
        return grid_over(0.0, 0.0, levels)
    return grid_over(histogram.low * low, histogram.high * high, levels)


def _within(histogram: HistogramObserver, share: float, levels: Levels) -> Grid:
    """A grid over the extremes, as far as magnitudes are within a share of the greatest."""
    if histogram.low > histogram.high:
        return grid_over(0.0, 0.0, levels)
    bound = share * max(abs(histogram.low), abs(histogram.high))
    return grid_over(max(histogram.low, -bound), min(histogram.high, bound), levels)


def _quantile(histogram: HistogramObserver, share: float) -> float:
    """The number below which a share of all lies; zeros lie at 0."""
    edges, density = histogram.density()
    mass = density * np.diff(edges)
    return _interpolate(edges, mass, 1 - float(mass.sum()), share)


def _magnitude_quantile(histogram: HistogramObserver, share: float) -> float:
    """The magnitude below which a share of all lies."""
    edges, density = histogram.density()
    mass = density * np.diff(edges)
    at = np.unique(np.abs(edges))
    cumulative = np.concatenate([[0.0], np.cumsum(mass)])
    within = np.interp(at, edges, cumulative) - np.interp(-at, edges, cumulative)
    folded = np.diff(np.concatenate([[0.0], within]))
    return _interpolate(np.concatenate([[0.0], at]), folded, 1 - float(mass.sum()), share)


def _interpolate(edges: Array, mass: Array, zeros: float, share: float) -> float:
    below = float(mass[edges[:-1] < 0].sum()) if edges[0] < 0 else 0.0
    if below <= share <= below + zeros and zeros > 0:
        return 0.0
    target = share if share < below else share - zeros
    return float(np.interp(target, np.concatenate([[0.0], np.cumsum(mass)]), edges))


def _divergence(edges: Array, mass: Array, grid: Grid) -> float:
    """Divergence of the clipped distribution from itself as the grid knows it, over bins."""
    middle = (edges[1:] + edges[:-1]) / 2
    inside = (middle >= grid.least) & (middle <= grid.greatest)
    if not inside.any() or mass[~inside].sum() > _MOST_CLIPPED * mass.sum():
        return math.inf
    kept = mass[inside].copy()
    kept[0] += mass[middle < grid.least].sum()
    kept[-1] += mass[middle > grid.greatest].sum()
    level = np.rint(middle[inside] / grid.scale).astype(np.int64)
    level -= level.min()
    occupied = kept > 0
    sums = np.bincount(level, weights=mass[inside])
    shares = np.bincount(level, weights=occupied)
    coarse = np.where(occupied, (sums / np.maximum(shares, 1))[level], 0.0)
    fine = kept / kept.sum()
    coarse = coarse / coarse.sum() if coarse.sum() > 0 else coarse
    coarse[(fine > 0) & (coarse == 0)] = _LEAST_PROBABILITY
    some = fine > 0
    return float((fine[some] * np.log(fine[some] / coarse[some] * coarse.sum())).sum())
