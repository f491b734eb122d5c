"""Weights in 8 bits, one scale for each output, and biases in 32.

On x86 without VNNI two neighbouring products are added in 16 bits, which saturate (see
`onnxopt.runtime.hardware`). Pair-safe weights never do: every two weights that are added, and have
one sign, add up to at most 128. Which two those are, by kernel (``mlas``):

- MatMul and Gemm multiply [in, out] weights in quadruples along ``in``: (0, 1), (2, 3), ...
- Conv runs channels-last, whatever the model's layout, so that a row of inputs is kernel positions
  x channels, channels innermost: pairs are neighbours in that order, within a group. With an odd
  number of channels a pair spans two kernel positions.
- Depthwise convolutions multiply each channel by itself, in 32 bits; there are no pairs. They are
  those with one input and one output a group: with several outputs a group, or with one channel and
  one group (a first layer that reads grey images), kernel positions are paired like any others.

`benchmarks.saturation` shows this of each kernel, with weights that are safe in this order only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onnxopt.numerics.weight_scales import usable_scales

__all__ = [
    "Weights",
    "least_scales",
    "pair_order",
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
    groups: int = 1,
) -> Weights:
    """Round weights to int8.

    Args:
        weights: float32; [out, in / groups, ...] with axis 0 or [in, out] with axis 1.
        axis: The axis that counts outputs.
        pair_limit: What two added weights of one sign may add up to; None for no limit.
        scales: float32 [out]; from the largest magnitude of each output when None.
        least: [out], what scales are at least; see `least_scales`.
        groups: Groups of a convolution.
    """
    rows = np.moveaxis(weights, axis, 0)
    flat = rows.reshape(len(rows), -1)
    if scales is None:
        scales = np.abs(flat).max(axis=1, initial=0.0) / _MOST
    if least is not None:
        scales = np.maximum(scales, least)
    scales = usable_scales(scales)
    numbers = _rounded(rows, scales)
    order = pair_order(weights, axis, groups)
    if pair_limit is not None and order is not None:
        numbers, scales = _pair_safe(rows, scales, pair_limit, order)
    return Weights(np.ascontiguousarray(np.moveaxis(numbers, 0, axis)), scales, axis)


def pairs_are_safe(numbers: Array, axis: int, groups: int = 1, limit: int = 128) -> bool:
    """Whether every two weights of one sign that a kernel adds up stay within the limit."""
    rows = np.moveaxis(numbers, axis, 0)
    flat = rows.reshape(len(rows), -1)
    order = pair_order(numbers, axis, groups)
    return order is None or not (np.abs(_sums(flat, *_pairs(order))) > limit).any()


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


def pair_order(weights: Array, axis: int, groups: int = 1) -> Array | None:
    """The order in which kernels lay out the weights of an output, to add them up two by two.

    Args:
        weights: [out, in / groups, ...] with axis 0 or [in, out] with axis 1.
        axis: The axis that counts outputs.
        groups: Groups of a convolution.

    Returns:
        A permutation of the weights of an output as they lie in it, int [K]; None where nothing is
        paired.
    """
    rows = np.moveaxis(weights, axis, 0)
    if 1 < groups == len(rows) and rows.shape[1] == 1:  # depthwise
        return None
    places = np.arange(rows[0].size).reshape(rows.shape[1:])
    return np.moveaxis(places, 0, -1).reshape(-1)


def _pairs(order: Array) -> tuple[Array, Array]:
    """The first and the second places of all pairs; a last one alone is safe."""
    even = len(order) // 2 * 2
    return order[0:even:2], order[1:even:2]


def _sums(flat: Array, first: Array, second: Array) -> Array:
    """int16 [out, pairs]."""
    return np.asarray(flat[:, first].astype(np.int16) + flat[:, second].astype(np.int16))


def _pair_safe(rows: Array, scales: Array, limit: int, order: Array) -> tuple[Array, Array]:
    """The finest scale for each output with which no pair offends, or cut the few that do.

    Making the scale coarser costs all weights of an output precision; taking the excess off the
    offending pairs costs only those. For each output, whichever has the smaller squared error.
    """
    best_numbers, best_scales = _cut(rows, scales, limit, order), scales.copy()
    best_error = _errors(rows, best_numbers, best_scales)
    factor = _COARSER
    while factor <= _COARSEST * _COARSER:
        tried = (scales * np.float32(min(factor, _COARSEST))).astype(np.float32)
        numbers = _cut(rows, tried, limit, order)
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


def _cut(rows: Array, scales: Array, limit: int, order: Array) -> Array:
    """Round, and take what offending pairs have too much off both of their weights."""
    numbers = _rounded(rows, scales)
    flat = numbers.reshape(len(numbers), -1)
    first, second = _pairs(order)
    sums = _sums(flat, first, second)
    excess = np.maximum(np.abs(sums) - limit, 0)
    sign, half = np.sign(sums), excess // 2
    flat[:, first] -= (sign * half).astype(np.int8)
    flat[:, second] -= (sign * (excess - half)).astype(np.int8)
    return numbers
