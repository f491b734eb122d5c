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
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "Moments",
    "Refit",
    "checked_refit",
    "costs_of_removal",
    "damped",
    "refit",
    "removal_order",
    "usual_damping",
]

Array = np.ndarray[Any, Any]

#: Least damping, so that a layer whose inputs are all zero can be solved.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Moments:
    """What is known of a layer's rows.

    Attributes:
        second: The second moment, or the covariance if the layer has a bias to move, [K, K].
        mean: Mean row, [K]; zeros where there is no bias to move.
        count: Number of rows.
    """

    second: Array
    mean: Array
    count: int

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
            return cls(second, np.zeros_like(mean), count)
        return cls(second - np.outer(mean, mean), mean, count)

    def output_energy(self, weights: Array) -> float:
        """Mean square of what the layer puts out, summed over its outputs."""
        return float(np.sum(weights * (self.second @ weights)))

    def error(self, before: Array, after: Array, shift: Array) -> float:
        """Mean square of what the outputs move, summed over outputs.

        Args:
            before: Weights, [K, M].
            after: Other weights.
            shift: What is added to the bias.
        """
        change = after - before
        return self.output_energy(change) + float(np.square(self.mean @ change + shift).sum())


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


def usual_damping(inputs: int, moments: Moments) -> float:
    """A damping that is rarely far off: 1 % as in GPTQ, more where there are hardly more rows than
    inputs, which could then take over by accident.
    """
    return max(0.01, inputs / max(1, moments.count))


def refit(weights: Array, moments: Moments, keep: Array, damping: float = 0.01) -> Refit:
    """Let the inputs that stay take over from those that go, by least squares.

    Args:
        weights: [K, M].
        moments: Of the rows; with a mean, the bias makes up for what is constant.
        keep: Which inputs stay, bool [K].
        damping: Added to the diagonal, as a part of its mean; keeps weights near what they were
            where data is short.
    """
    result = np.zeros_like(weights)
    if keep.any():
        second = damped(moments.second, damping)
        taken = np.linalg.solve(
            second[np.ix_(keep, keep)], moments.second[np.ix_(keep, ~keep)] @ weights[~keep]
        )
        result[keep] = weights[keep] + taken
    return Refit(result, moments.mean @ (weights - result))


def checked_refit(
    weights: Array, moments: Moments, check: Moments, keep: Array, dampings: Sequence[float]
) -> Refit:
    """A refit with the damping that does best on rows that were not fitted to.

    Args:
        weights: [K, M].
        moments: Of the rows to fit to.
        check: Of other rows.
        keep: Which inputs stay, bool [K].
        dampings: What to try, from the least.
    """
    best, least = Refit(weights * keep[:, None], np.zeros(weights.shape[1])), np.inf
    for damping in dampings:
        found = refit(weights, moments, keep, damping)
        error = check.error(weights, found.weights, found.shift)
        if error >= least:
            break  # it is a valley
        best, least = found, error
    return best


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
    layers: list[tuple[Array, Moments, Array]],
    candidates: Array,
    most: int,
    damping: float = 0.01,
    at_once: int = 1,
) -> tuple[list[int], list[float]]:
    """Remove units one by one, each time the one whose loss can be made up for best.

    Several layers may read the same units; their errors count relative to what they put out.

    Args:
        layers: For each layer its weights [K, M], the moments of its rows, and for each input its
            unit (-1 for none).
        candidates: Units that may go.
        most: Remove so many at most.
        damping: As in `refit`.
        at_once: Look again after so many have gone.

    Returns:
        Units in the order in which they go, and the error when all so far are gone: the mean square
        error over the mean square output, summed over layers.
    """
    states = [_Eliminated(*layer, damping) for layer in layers]
    open_ = np.zeros(max(state.count for state in states) if states else 0, np.bool_)
    open_[np.asarray(candidates, np.int64)] = True
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    left = min(most, int(open_.sum()))
    while left:
        costs = np.where(open_, 0.0, np.inf)
        for state in states:
            costs[: state.count] += state.costs()
        units = np.argsort(costs, kind="stable")[: min(at_once, left)]
        for state in states:
            state.remove(units)
        open_[units] = False
        left -= len(units)
        order.extend(units.tolist())
        errors.extend((total + np.cumsum(costs[units])).tolist())
        total = errors[-1]
    return order, errors


class _Eliminated:
    """A layer from which units are taken one by one, by block elimination of the inverse.

    Args:
        weights: [K, M].
        moments: Of the rows.
        units: The unit of each input, -1 for none.
        damping: As in `refit`.

    Attributes:
        count: Number of units, with those that the layer does not read.
    """

    def __init__(self, weights: Array, moments: Moments, units: Array, damping: float) -> None:
        self.count = int(units.max(initial=-1)) + 1
        self._energy = moments.output_energy(weights) + _TINY
        self._inverse = np.linalg.inv(damped(moments.second, damping))
        self._weights = weights.astype(np.float64).copy()
        self._places = [np.flatnonzero(units == unit) for unit in range(self.count)]
        self._left = np.array([len(places) > 0 for places in self._places], np.bool_)

    def costs(self) -> Array:
        """By unit, the further error when it goes, relative to the output; 0 where it is gone."""
        costs = np.zeros(self.count)
        left = np.flatnonzero(self._left)
        sizes = {len(self._places[unit]) for unit in left}
        for size in sizes:
            units = np.array([unit for unit in left if len(self._places[unit]) == size])
            places = np.array([self._places[unit] for unit in units])
            rows = self._weights[places]
            if size == 1:
                variance = np.diagonal(self._inverse)[places[:, 0]]
                costs[units] = np.square(rows[:, 0]).sum(axis=1) / variance
                continue
            blocks = self._inverse[places[:, :, None], places[:, None, :]]
            costs[units] = np.sum(rows * np.linalg.solve(blocks, rows), axis=(1, 2))
        result: Array = costs / self._energy
        return result

    def remove(self, units: Array) -> None:
        """Take units out, with the others taking over."""
        here = [unit for unit in units.tolist() if unit < self.count and self._left[unit]]
        if not here:
            return
        self._left[here] = False
        places = np.concatenate([self._places[unit] for unit in here])
        columns = self._inverse[:, places]
        gain = columns @ np.linalg.inv(self._inverse[np.ix_(places, places)])
        self._weights -= gain @ self._weights[places]
        self._inverse -= gain @ columns.T
        self._weights[places] = 0.0
        self._inverse[places] = 0.0
        self._inverse[:, places] = 0.0
