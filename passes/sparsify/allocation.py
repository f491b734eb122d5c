"""How a share of zeros over all layers is spread over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .criteria import lamp, magnitude
from .layers import Layer

__all__ = ["by_measured_noise", "erk", "globally"]

Array = np.ndarray[Any, Any]

#: Bisections of a multiplier; a hundred-thousandth of a layer is as near as anybody needs.
_STEPS = 60
#: Less noise than this is none.
_LEAST_NOISE = 1e-20


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


def by_measured_noise(
    noise: Mapping[Layer, Mapping[float, float]], ratio: float, most: float
) -> dict[Layer, float]:
    """The ratios with which all layers together make the least noise.

    Noises of layers add up (their errors are about independent), and that of a layer grows about
    exponentially with its ratio; in between what was measured, its logarithm is interpolated. The
    sum is least where one more weight costs the same everywhere, so one price is looked for.

    Args:
        noise: For each layer, noise power at the model's outputs by ratio.
        ratio: Share of zeros over all layers together.
        most: Largest ratio of a layer.
    """
    curves = {layer: _Curve(points, layer.size, most) for layer, points in noise.items()}
    total = sum(layer.size for layer in noise)

    def spread(price: float) -> dict[Layer, float]:
        return {layer: curve.ratio(price) for layer, curve in curves.items()}

    low, high = -80.0, 20.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = spread(math.exp(middle))
        if sum(layer.size * each for layer, each in found.items()) < ratio * total:
            low = middle
        else:
            high = middle
    return spread(math.exp(high))


class _Curve:
    """Noise over ratio, made convex, for one layer."""

    def __init__(self, points: Mapping[float, float], size: int, most: float) -> None:
        grid = np.linspace(0.0, most, 129)
        ratios = np.array(sorted(points))
        logs = np.log(np.maximum([points[each] for each in ratios.tolist()], _LEAST_NOISE))
        slope = (logs[-1] - logs[0]) / (ratios[-1] - ratios[0]) if ratios.size > 1 else 1.0
        values = np.interp(grid, ratios, logs)
        values = np.where(grid < ratios[0], logs[0] - slope * (ratios[0] - grid), values)
        values = np.where(grid > ratios[-1], logs[-1] + slope * (grid - ratios[-1]), values)
        noise = np.exp(values)
        noise[0] = 0.0
        self._grid, self._noise = _lower_hull(grid, np.maximum.accumulate(noise))
        self._prices = np.diff(self._noise) / (np.diff(self._grid) * size)

    def ratio(self, price: float) -> float:
        """The largest ratio up to which another weight costs no more than the price."""
        return float(self._grid[np.searchsorted(self._prices, price, side="right")])


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
