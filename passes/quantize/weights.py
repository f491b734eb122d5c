"""Weights in 8 bits, one scale for each output, and biases in 32.

On x86 without VNNI two neighbouring products are added in 16 bits, which saturate (see
`onnxopt.runtime.hardware`). Pair-safe weights never do: every two weights that are added, and have
one sign, add up to at most 128. Which two those are, by kernel (``mlas``):

- MatMul and Gemm multiply [in, out] weights in quadruples along ``in``: (0, 1), (2, 3), ...
- Conv runs channels-last, so that a row of inputs is kernel positions x channels, channels
  innermost: pairs are neighbours in that order, within a group. With an odd number of channels a
  pair spans two kernel positions.
- Depthwise convolutions multiply each channel by itself, in 32 bits; there are no pairs.

Rows and columns of Conv kernels are also multiplied in the order channels x kernel positions, where
the runtime keeps the channels-first layout; both orders are made safe.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onnxopt.numerics.weight_scales import usable_scales

__all__ = [
    "Weights",
    "least_scales",
    "pair_orders",
    "pairs_are_safe",
    "quantize_bias",
    "quantize_weights",
]

Array = np.ndarray[Any, Any]

_MOST = 127
#: A bias may take this much of int32; the rest is left to the products that are added to it.
_BIAS_LIMIT = float(1 << 30)
#: A scale this much coarser is tried at last; with 7 bits no pair can add up to more than 128.
_COARSEST = 127 / 64
_COARSER = 1.05


@dataclasses.dataclass(frozen=True)
class Weights:
    """Symmetric int8 weights.

    Attributes:
        numbers: int8, in the layout of the float weights.
        scales: float32 [out].
        axis: The axis that counts outputs.
    """

    numbers: Array
    scales: Array
    axis: int

    def dequantized(self) -> Array:
        """float32, what the numbers stand for."""
        shape = [1] * self.numbers.ndim
        shape[self.axis] = -1
        return self.numbers.astype(np.float32) * self.scales.reshape(shape)


def quantize_weights(
    weights: Array,
    axis: int,
    pair_limit: int | None,
    scales: Array | None = None,
    least: Array | None = None,
) -> Weights:
    """Round weights to int8.

    Args:
        weights: float32; [out, in / groups, ...] with axis 0 or [in, out] with axis 1.
        axis: The axis that counts outputs.
        pair_limit: What two added weights of one sign may add up to; None for no limit.
        scales: float32 [out]; from the largest magnitude of each output when None.
        least: [out], what scales are at least; see `least_scales`.
    """
    rows = np.moveaxis(weights, axis, 0)
    flat = rows.reshape(len(rows), -1)
    if scales is None:
        scales = np.abs(flat).max(axis=1, initial=0.0) / _MOST
    if least is not None:
        scales = np.maximum(scales, least)
    scales = usable_scales(scales)
    numbers = _rounded(rows, scales)
    if pair_limit is not None and not _is_depthwise(rows, axis):
        numbers, scales = _pair_safe(rows, scales, pair_limit, pair_orders(weights, axis))
    return Weights(np.ascontiguousarray(np.moveaxis(numbers, 0, axis)), scales, axis)


def pairs_are_safe(numbers: Array, axis: int, limit: int = 128) -> bool:
    """Whether every two weights of one sign that a kernel adds up stay within the limit."""
    rows = np.moveaxis(numbers, axis, 0)
    flat = rows.reshape(len(rows), -1)
    return not any(_offends(flat[:, order], limit).any() for order in pair_orders(numbers, axis))


def quantize_bias(bias: Array, activation_scale: float, weights: Weights) -> tuple[Array, Array]:
    """A bias as int32 at exactly the product of the scales.

    Returns:
        int32 [out] and float32 scales [out].
    """
    scales = (np.float32(activation_scale) * weights.scales).astype(np.float32)
    wide = np.round(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(wide, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32), scales


def least_scales(bias: Array, activation_scale: float) -> Array:
    """The smallest weight scales with which a bias fits into 32 bits, with room for corrections.

    Channels that training has all but switched off have tiny weights and a bias of usual size.
    """
    return np.abs(bias).astype(np.float64) / (_BIAS_LIMIT / 4 * activation_scale)


def _rounded(rows: Array, scales: Array) -> Array:
    wide = scales.reshape(-1, *[1] * (rows.ndim - 1))
    return np.ascontiguousarray(np.clip(np.round(rows / wide), -_MOST, _MOST), np.int8)


def _is_depthwise(rows: Array, axis: int) -> bool:
    return axis == 0 and rows.ndim > 2 and rows.shape[1] == 1


def pair_orders(weights: Array, axis: int) -> list[Array]:
    """Ways in which kernels lay out the weights of an output in a row, in pairs.

    Returns:
        Permutations of the inputs as they lie in the row, int [K]; none where nothing is paired.
    """
    rows = np.moveaxis(weights, axis, 0)
    if _is_depthwise(rows, axis):
        return []
    places = np.arange(rows[0].size).reshape(1, *rows.shape[1:])
    plain = places.reshape(-1)
    return [plain] if rows.ndim == 2 else [np.moveaxis(places, 1, -1).reshape(-1), plain]


def _offends(flat: Array, limit: int) -> Array:
    """Which pairs of a row add up to too much."""
    even = flat.shape[1] // 2 * 2  # a last one alone is safe
    sums = flat[:, 0:even:2].astype(np.int16) + flat[:, 1:even:2].astype(np.int16)
    return np.asarray(np.abs(sums) > limit)


def _pair_safe(rows: Array, scales: Array, limit: int, orders: list[Array]) -> tuple[Array, Array]:
    """The finest scale for each output with which no pair offends, or cut the few that do.

    Making the scale coarser costs all weights of an output precision; taking the excess off the
    offending pairs costs only those. For each output, whichever has the smaller squared error.
    """
    best_numbers, best_scales = _cut(rows, scales, limit, orders), scales.copy()
    best_error = _errors(rows, best_numbers, best_scales)
    factor = _COARSER
    while factor <= _COARSEST * _COARSER:
        tried = (scales * np.float32(min(factor, _COARSEST))).astype(np.float32)
        numbers = _cut(rows, tried, limit, orders)
        error = _errors(rows, numbers, tried)
        better = error < best_error
        best_numbers[better], best_scales[better] = numbers[better], tried[better]
        best_error = np.minimum(best_error, error)
        factor *= _COARSER
    return best_numbers, best_scales


def _errors(rows: Array, numbers: Array, scales: Array) -> Array:
    wide = scales.reshape(-1, *[1] * (rows.ndim - 1))
    squares = np.square(rows - numbers * wide)
    return np.asarray(squares.reshape(len(rows), -1).sum(axis=1))


def _cut(rows: Array, scales: Array, limit: int, orders: list[Array]) -> Array:
    """Round, and take what offending pairs have too much off both of their weights."""
    numbers = _rounded(rows, scales)
    changed = True
    while changed:  # a pair in one order is made of halves of pairs in the other
        changed = False
        for order in orders:
            changed |= _cut_pairs(numbers.reshape(len(numbers), -1), order, limit)
    return numbers


def _cut_pairs(flat: Array, order: Array, limit: int) -> bool:
    """Cut the pairs of one order in place; whether any offended."""
    even = len(order) // 2 * 2
    first, second = order[0:even:2], order[1:even:2]
    sums = flat[:, first].astype(np.int16) + flat[:, second].astype(np.int16)
    excess = np.maximum(np.abs(sums) - limit, 0)
    if not excess.any():
        return False
    sign, half = np.sign(sums), excess // 2
    flat[:, first] -= (sign * half).astype(np.int8)
    flat[:, second] -= (sign * (excess - half)).astype(np.int8)
    return True
