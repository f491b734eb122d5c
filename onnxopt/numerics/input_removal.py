"""What it costs a linear layer to lose inputs, and how the others make up for them best.

A layer computes ``x @ W + b`` for rows x [K] and weights W [K, M]. All that is needed of the data
is the second moment of its rows, ``H = E[x^T x]`` or, where a bias can be moved, their covariance.
Losing a set R of inputs costs ``tr(W_R^T H_RR W_R)`` if nothing else changes. If the inputs S that
stay may take over, the least squares solution is ``W_S + H_SS^-1 H_SR W_R``, and the cost that is
left is ``tr(W_R^T ([H^-1]_RR)^-1 W_R)``. Source: Hassibi and Stork, Optimal Brain Surgeon, 1993;
for structures Kurtic et al., ZipLM, NeurIPS 2023, arXiv 2302.04089.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Moments", "Refit", "costs_of_removal", "damped", "refit", "removal_order"]

Array = np.ndarray[Any, Any]

#: Least damping, so that a layer whose inputs are all zero can be solved.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Moments:
    """What is known of a layer's rows.

    Attributes:
        second: The second moment, or the covariance if the layer has a bias to move, [K, K].
        mean: Mean row, [K]; zeros where there is no bias to move.
    """

    second: Array
    mean: Array

    @classmethod
    def of(cls, gram: Array, sums: Array, count: int, *, centred: bool) -> Moments:
        """From sums over rows.

        Args:
            gram: ``sum x^T x``, [K, K].
            sums: ``sum x``, [K].
            count: Number of rows.
            centred: Whether the layer has a bias to move.
        """
        mean = sums / max(1, count)
        second = gram / max(1, count)
        if not centred:
            return cls(second, np.zeros_like(mean))
        return cls(second - np.outer(mean, mean), mean)

    def output_energy(self, weights: Array) -> float:
        """Mean square of what the layer puts out, summed over its outputs."""
        return float(np.sum(weights * (self.second @ weights)))


def damped(second: Array, damping: float) -> Array:
    """A moment with a part of its mean diagonal added to it, so that it can be inverted."""
    extra = damping * float(np.diagonal(second).mean()) + _TINY
    result: Array = second + extra * np.eye(len(second))
    return result


@dataclasses.dataclass(frozen=True)
class Refit:
    """Weights and a shift of the bias after a refit.

    Attributes:
        weights: [K, M], zero where inputs are gone.
        shift: To add to the bias, [M].
    """

    weights: Array
    shift: Array


def refit(weights: Array, moments: Moments, keep: Array, damping: float = 0.01) -> Refit:
    """Let the inputs that stay take over from those that go, by least squares.

    Args:
        weights: [K, M].
        moments: Of the rows; with a mean, the bias makes up for what is constant.
        keep: Which inputs stay, bool [K].
        damping: Added to the diagonal, as a part of its mean; keeps weights small where data is
            short.
    """
    result = np.zeros_like(weights)
    if keep.any():
        second = damped(moments.second, damping)
        taken = np.linalg.solve(
            second[np.ix_(keep, keep)], moments.second[np.ix_(keep, ~keep)] @ weights[~keep]
        )
        result[keep] = weights[keep] + taken
    return Refit(result, moments.mean @ (weights - result))


def costs_of_removal(weights: Array, moments: Moments, units: Array) -> Array:
    """The mean square error of losing each unit alone, with nothing taking over.

    Args:
        weights: [K, M].
        moments: Of the rows.
        units: For each input its unit, [K]; -1 for inputs of no unit.

    Returns:
        By unit, ``tr(W_u^T H_uu W_u)``.
    """
    count = int(units.max(initial=-1)) + 1
    costs = np.zeros(count)
    for unit in range(count):
        places = np.flatnonzero(units == unit)
        block = moments.second[np.ix_(places, places)]
        costs[unit] = float(np.sum(weights[places] * (block @ weights[places])))
    return costs


def removal_order(
    layers: list[tuple[Array, Moments, Array]], candidates: Array, most: int, damping: float = 0.01
) -> tuple[list[int], list[float]]:
    """Remove units one by one, each time the one whose loss can be made up for best.

    Several layers may read the same units; their errors count relative to what they put out.

    Args:
        layers: For each layer its weights [K, M], the moments of its rows, and for each input its
            unit (-1 for none).
        candidates: Units that may go.
        most: Remove so many at most.
        damping: As in `refit`.

    Returns:
        Units in the order in which they go, and the error when all so far are gone: the mean square
        error over the mean square output, summed over layers.
    """
    states = [_Eliminated(*layer, damping) for layer in layers]
    left = {int(each) for each in candidates}
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    for _ in range(min(most, len(left))):
        costs = dict.fromkeys(left, 0.0)
        for state in states:
            for unit, cost in state.costs().items():
                if unit in costs:
                    costs[unit] += cost
        unit = min(left, key=lambda each: (costs[each], each))
        for state in states:
            state.remove(unit)
        left.remove(unit)
        total += costs[unit]
        order.append(unit)
        errors.append(total)
    return order, errors


class _Eliminated:
    """A layer from which units are taken one by one, by block elimination of the inverse."""

    def __init__(self, weights: Array, moments: Moments, units: Array, damping: float) -> None:
        self._energy = moments.output_energy(weights) + _TINY
        self._inverse = np.linalg.inv(damped(moments.second, damping))
        self._weights = weights.astype(np.float64).copy()
        self._places = {
            int(unit): np.flatnonzero(units == unit) for unit in np.unique(units) if unit >= 0
        }

    def costs(self) -> dict[int, float]:
        """By unit that is left, the further error when it goes, relative to the output."""
        single = all(len(places) == 1 for places in self._places.values())
        if single and self._places:
            units = list(self._places)
            places = np.array([self._places[unit][0] for unit in units])
            norms = np.square(self._weights[places]).sum(axis=1)
            relative = norms / np.diagonal(self._inverse)[places] / self._energy
            return dict(zip(units, relative.tolist(), strict=True))
        found = {}
        for unit, places in self._places.items():
            block = self._inverse[np.ix_(places, places)]
            rows = self._weights[places]
            found[unit] = float(np.sum(rows * np.linalg.solve(block, rows))) / self._energy
        return found

    def remove(self, unit: int) -> None:
        """Take a unit out, with the others taking over."""
        places = self._places.pop(unit, None)
        if places is None:
            return
        columns = self._inverse[:, places]
        gain = columns @ np.linalg.inv(self._inverse[np.ix_(places, places)])
        self._weights -= gain @ self._weights[places]
        self._inverse -= gain @ columns.T
        self._weights[places] = 0.0
        self._inverse[places] = 0.0
        self._inverse[:, places] = 0.0
