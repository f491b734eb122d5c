"""How a share of zeros over all layers is spread over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .criteria import lamp, magnitude
from .layers import Layer

__all__ = ["NoiseModel", "erk", "globally"]

Array = np.ndarray[Any, Any]

#: Bisections of a price.
_STEPS = 50
#: Less noise than this is none.
_LEAST_NOISE = 1e-20
#: Between these natural logarithms the price of a zero is looked for.
_LOG_PRICES = (-80.0, 20.0)
#: Ratios at which a layer's curve is evaluated.
_GRID = 129


def globally(layers: Sequence[Layer], ratio: float, *, use_lamp: bool) -> dict[Layer, float]:
    """One threshold for all layers, on absolute weights or on LAMP scores."""
    score = lamp if use_lamp else magnitude
    scores = {layer: score(layer.matrix()).astype(np.float32).reshape(-1) for layer in layers}
    everything = np.concatenate(list(scores.values()))
    count = min(round(everything.size * ratio), everything.size - 1)
    if count <= 0:
        return dict.fromkeys(layers, 0.0)
    threshold = np.partition(everything, count)[count]
    return {layer: float(np.mean(each < threshold)) for layer, each in scores.items()}


def erk(layers: Sequence[Layer], ratio: float) -> dict[Layer, float]:
    """Densities in proportion to the sum of a weight's sizes over their product.

    Layers that would have to be more than dense stay dense, and the others take their share.
    Source: Erdos-Renyi-Kernel, Evci et al., Rigging the Lottery, ICML 2020, arXiv 1911.11134.
    """
    raw = {layer: sum(layer.shape) / layer.size for layer in layers}
    dense: set[Layer] = set()
    kept = (1 - ratio) * sum(layer.size for layer in layers)
    while True:
        rest = [layer for layer in layers if layer not in dense]
        left = kept - sum(layer.size for layer in dense)
        weight = sum(raw[layer] * layer.size for layer in rest)
        factor = max(left, 0.0) / weight if weight else 0.0
        full = {layer for layer in rest if factor * raw[layer] > 1}
        if not full:
            break
        dense |= full
    return {layer: 0.0 if layer in dense else 1 - factor * raw[layer] for layer in layers}


class NoiseModel:
    """What zeros in layers do to a model's outputs, from measurements of single layers.

    Noises of layers add up, since their errors are about independent, and that of a layer grows
    about exponentially with its ratio: in between what was measured, its logarithm is interpolated.
    The sum is least where one more zero costs the same everywhere, so one price is looked for.

    Args:
        measured: For each layer, noise power at the model's outputs by ratio.
        most: Largest ratio of a layer.
        whole: Whether a layer is sparse as far as it was measured or not at all.
    """

    def __init__(
        self, measured: Mapping[Layer, Mapping[float, float]], most: float, *, whole: bool = False
    ) -> None:
        self._curves = {
            layer: _Curve(points, layer.size, most, whole) for layer, points in measured.items()
        }
        self._size = sum(layer.size for layer in measured)

    def at_ratio(self, ratio: float) -> dict[Layer, float]:
        """The ratios that add up to at least this one and make the least noise."""
        return self._search(lambda found: self.ratio(found) >= ratio)

    def at_noise(self, noise: float) -> dict[Layer, float]:
        """The ratios that add up to most and make about this much noise, or the least more."""
        return self._search(lambda found: self.noise(found) >= noise)

    def ratio(self, ratios: Mapping[Layer, float]) -> float:
        """Share of zeros over all layers together."""
        zeros = sum(layer.size * each for layer, each in ratios.items())
        return zeros / self._size if self._size else 0.0

    def noise(self, ratios: Mapping[Layer, float]) -> float:
        """The noise to expect."""
        return sum(self._curves[layer].noise(each) for layer, each in ratios.items())

    def _search(self, enough: Callable[[Mapping[Layer, float]], bool]) -> dict[Layer, float]:
        low, high = _LOG_PRICES
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if enough(self._spread(middle)):
                high = middle
            else:
                low = middle
        return self._spread(high)

    def _spread(self, log_price: float) -> dict[Layer, float]:
        price = math.exp(log_price)
        return {layer: curve.ratio(price) for layer, curve in self._curves.items()}


class _Curve:
    """Noise over ratio, made convex, for one layer."""

    def __init__(self, points: Mapping[float, float], size: int, most: float, whole: bool) -> None:
        ratios = np.array(sorted(points))
        logs = np.log(np.maximum([points[each] for each in ratios.tolist()], _LEAST_NOISE))
        if whole:
            grid, noise = np.array([0.0, ratios[-1]]), np.array([0.0, math.exp(logs[-1])])
        else:
            grid = np.linspace(0.0, most, _GRID)
            if ratios.size > 1:
                first, last = np.diff(logs)[[0, -1]] / np.diff(ratios)[[0, -1]]
            else:
                first = last = 0.0
            values = np.interp(grid, ratios, logs)
            values += np.minimum(grid - ratios[0], 0) * first
            values += np.maximum(grid - ratios[-1], 0) * last
            noise = np.exp(values)
            noise[0] = 0.0
        self._ratios, self._noise = _lower_hull(grid, np.maximum.accumulate(noise))
        self._prices = np.diff(self._noise) / (np.diff(self._ratios) * size)

    def ratio(self, price: float) -> float:
        """The largest ratio up to which another zero costs no more than the price."""
        return float(self._ratios[np.searchsorted(self._prices, price, side="right")])

    def noise(self, ratio: float) -> float:
        """The noise at a ratio."""
        return float(np.interp(ratio, self._ratios, self._noise))


def _lower_hull(x: Array, y: Array) -> tuple[Array, Array]:
    """The lower convex hull of points in order of x."""
    hull: list[int] = []
    for index in range(x.size):
        while len(hull) > 1:
            one, other = hull[-2], hull[-1]
            cross = (x[other] - x[one]) * (y[index] - y[one]) - (y[other] - y[one]) * (
                x[index] - x[one]
            )
            if cross > 0:
                break
            hull.pop()
        hull.append(index)
    return x[hull], y[hull]
