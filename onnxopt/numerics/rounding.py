"""Rounding weights to a grid so that the layer's outputs change least, not the weights.

Rounding errors of weights add up in the outputs as the inputs go together; with the Gram matrix of
the inputs, some weights are rounded the other way to cancel the errors of others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.numerics.gram import damped, inverse_factor, output_error
from onnxopt.numerics.weight_scales import round_to_nearest

__all__ = ["PairLimit", "bias_shift", "round_with_compensation"]

Array = np.ndarray[Any, Any]

#: Rows of the Gram matrix that are worked on together, so that most work is products of matrices.
_BLOCK = 64
_DAMPING = 0.01


@dataclasses.dataclass(frozen=True)
class PairLimit:
    """What two weights that a kernel adds up may come to, if they have the same sign.

    Attributes:
        partners: For each layout, the partner of each input, int [K]; -1 for none.
        limit: Greatest magnitude of the sum of two of the same sign.
    """

    partners: Sequence[Array]
    limit: int = 128

    @classmethod
    def along(cls, orders: Sequence[Array], limit: int = 128) -> PairLimit:
        """Pairs of neighbours (first and second, third and fourth, ...) in each of some orders.

        Args:
            orders: Permutations of the inputs, int [K], as kernels lay them out.
            limit: See the class.
        """
        partners = []
        for order in orders:
            even = len(order) // 2 * 2
            partner = np.full(len(order), -1)
            partner[order[0:even:2]], partner[order[1:even:2]] = order[1:even:2], order[0:even:2]
            partners.append(partner)
        return cls(tuple(partners), limit)


def round_with_compensation(
    matrix: Array,
    scales: Array,
    gram: Array,
    *,
    steps: int = 127,
    start: Array | None = None,
    pairs: PairLimit | None = None,
    sweeps: int = 0,
    damping: float = _DAMPING,
) -> Array:
    """Integers whose outputs are near those of the weights.

    First GPTQ (Frantar et al. 2022): inputs are rounded one after the other, and those that are
    still to come make up for the error. Then, if asked for, coordinate descent (QuantEase, Behdad
    et al. 2023): one weight at a time takes the integer that is best, given all others. It gets
    nearer on the rows that the Gram matrix is of, which is worth it where these are many.
    Each output keeps what it started with if that is nearer.

    Args:
        matrix: Weights, [G, K, M].
        scales: [G, M], or [G, K, M] where inputs have scales of their own.
        gram: Mean of ``x^T x`` over the layer's inputs, [G, K, K].
        steps: The greatest integer, as well as the least one's magnitude.
        start: Integers to fall back on, [G, K, M]; rounded to nearest when None. They must keep the
            pair limit.
        pairs: A limit for pairs of weights.
        sweeps: At most so many rounds of coordinate descent.
        damping: Share of the mean diagonal that is added to it: how much the weights themselves
            should stay near, too, since the Gram matrix is of few samples.

    Returns:
        int16 [G, K, M], within the limits.
    """
    if start is None:
        assert scales.ndim == 2, "inputs with scales of their own have to be rounded before"
        start = round_to_nearest(matrix, scales, -steps, steps)
        if pairs is not None:
            start = _feasible(start, pairs)
    problem = _Problem(matrix, scales, damped(gram, damping), steps, pairs)
    found = problem.descend(problem.pass_errors_on(gram, damping), sweeps)
    errors = [output_error(problem.gram, problem.change(each)) for each in (start, found)]
    better = (errors[1] < errors[0])[:, None]
    return np.where(better, found, start).astype(np.int16)


def bias_shift(change: Array, mean_row: Array) -> Array:
    """What to add to the outputs so that their means stay when the weights change, [G, M].

    The mean of the error of an output is the change of its weights times the mean input (Nagel et
    al., "Data-free quantization through weight equalization and bias correction", 2019).

    Args:
        change: Of the weights, [G, K, M].
        mean_row: Mean of the layer's input, [G, K].
    """
    return np.asarray(-(mean_row[:, None] @ change)[:, 0])


class _Problem:
    """Weights, grid and Gram matrix, as float64."""

    def __init__(
        self, matrix: Array, scales: Array, gram: Array, steps: int, pairs: PairLimit | None
    ) -> None:
        wide = scales.astype(np.float64)
        self.matrix = matrix.astype(np.float64)
        self.scales = np.broadcast_to(wide[:, None] if wide.ndim == 2 else wide, matrix.shape)
        self.gram, self._steps, self._pairs = gram, steps, pairs

    def change(self, integers: Array) -> Array:
        """How far the weights are from the integers' values."""
        return np.asarray(integers * self.scales - self.matrix)

    def pass_errors_on(self, gram: Array, damping: float) -> Array:
        """Round inputs in order; those that come later make up for the errors (GPTQ)."""
        factor = inverse_factor(gram, damping)
        target = self.matrix.copy()
        integers = np.zeros_like(target)
        size = target.shape[1]
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            errors = np.zeros((len(target), end - begin, target.shape[2]))
            for k in range(begin, end):
                integers[:, k] = self._nearest(integers, k, target[:, k] / self.scales[:, k])
                rounded = integers[:, k] * self.scales[:, k]
                error = (target[:, k] - rounded) / factor[:, k, k, None]
                target[:, k + 1 : end] -= factor[:, k, k + 1 : end, None] * error[:, None]
                errors[:, k - begin] = error
            target[:, end:] -= factor[:, begin:end, end:].transpose(0, 2, 1) @ errors
        return integers

    def descend(self, integers: Array, sweeps: int) -> Array:
        """Let each weight take its best integer, given the others, until none changes."""
        integers = integers.copy()
        change = self.change(integers)
        size = integers.shape[1]
        diagonal = np.diagonal(self.gram, axis1=1, axis2=2)
        for _ in range(sweeps):
            moved = False
            for begin in range(0, size, _BLOCK):
                end = min(begin + _BLOCK, size)
                slope = self.gram[:, begin:end] @ change
                for k in range(begin, end):
                    step = slope[:, k - begin] / (diagonal[:, k, None] * self.scales[:, k])
                    wanted = self._nearest(integers, k, integers[:, k] - step)
                    moves = (wanted - integers[:, k]) * self.scales[:, k]
                    if not moves.any():
                        continue
                    moved = True
                    integers[:, k] = wanted
                    change[:, k] += moves
                    slope += self.gram[:, begin:end, k, None] * moves[:, None]
            if not moved:
                break
        return integers

    def _nearest(self, integers: Array, k: int, wanted: Array) -> Array:
        """The nearest integers that input k may have, given its partners."""
        low, high = float(-self._steps), float(self._steps)
        if self._pairs is None:
            return np.clip(np.rint(wanted), low, high)
        lows, highs = np.full(wanted.shape, low), np.full(wanted.shape, high)
        for partners in self._pairs.partners:
            if partners[k] >= 0:
                other = integers[:, partners[k]]
                highs = np.minimum(highs, self._pairs.limit - np.maximum(other, 0))
                lows = np.maximum(lows, -self._pairs.limit - np.minimum(other, 0))
        return np.clip(np.rint(wanted), lows, highs)


def _feasible(integers: Array, pairs: PairLimit) -> Array:
    """Integers with what pairs have too much taken off both of them."""
    result = integers.astype(np.int16)
    changed = True
    while changed:
        changed = False
        for partners in pairs.partners:
            first = np.flatnonzero(partners > np.arange(len(partners)))
            second = partners[first]
            sums = result[:, first] + result[:, second]
            same = np.sign(result[:, first]) * np.sign(result[:, second]) >= 0
            excess = np.where(same, np.maximum(np.abs(sums) - pairs.limit, 0), 0)
            if excess.any():
                changed = True
                half = excess // 2
                result[:, first] -= (np.sign(sums) * half).astype(np.int16)
                result[:, second] -= (np.sign(sums) * (excess - half)).astype(np.int16)
    return result
