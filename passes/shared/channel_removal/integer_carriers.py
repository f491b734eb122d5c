"""Let integer weights of channels that stay take over what removed constants add, exactly.

Under padding no bias is right, and among integers a carrier cannot have just any weight: with q the
levels of constants, the sum ``sum_j q_j * W_j`` over those that go has to be ``sum_k q_k * D_k``
over carriers that stay, in whole numbers D, at each tap and for each output. Two carriers with
coprime levels can make any number (Bezout); others with large levels keep D small. No weight
becomes larger than the largest there was, so that sums of products do not saturate in kernels where
they did not before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.channels import Layer

__all__ = ["can_carry", "carried"]

Ints = NDArray[np.int64]

#: Pairs that are tried for a group, and numbers that are tried for the first of a pair.
_PAIRS, _SHIFTS = 4, range(-3, 4)


def can_carry(layer: Layer) -> bool:
    """Whether the layer multiplies integers of one scale by int8 weights that are 0 for 0."""
    zero = layer.weights.zero_point
    return (
        layer.weights.is_quantized
        and layer.weights.stored.dtype == np.int8
        and zero is not None
        and not zero.any()
        and layer.input_scale is not None
    )


def carried(
    layer: Layer, numbers: NDArray[np.float64], constants: NDArray[np.float64]
) -> tuple[NDArray[Any], list[int]]:
    """The weights with what carriers take over.

    Args:
        layer: A layer that `can_carry`.
        numbers: The constants to account for, by input; 0 for inputs that stay.
        constants: The constants that stay, by input; 0 for others.

    Returns:
        The weights as `Layer.blocks`, and the groups in which these carriers cannot do it.
    """
    scale = layer.input_scale
    assert scale is not None
    blocks = np.array(layer.blocks)
    limit = int(np.abs(blocks.astype(np.int64)).max(initial=0))
    gone, kept = (
        np.rint(each / scale).astype(np.int64).reshape(layer.groups, -1)
        for each in (numbers, constants)
    )
    lacking = []
    for group in range(layer.groups):
        if not gone[group].any():
            continue
        weights = blocks[group].astype(np.int64)
        wanted = np.tensordot(gone[group], weights, 1)
        places = np.flatnonzero(kept[group])
        added = _added(wanted, kept[group][places], weights[places], limit)
        if added is None:
            lacking.append(group)
        else:
            blocks[group][places] = (weights[places] + added).astype(blocks.dtype)
    return blocks, lacking


def _added(wanted: Ints, levels: Ints, weights: Ints, limit: int) -> Ints | None:
    """What to add to the weights of carriers, [carriers, outputs, taps]; None if it cannot be."""
    divisor = math.gcd(*levels.tolist())
    if divisor == 0 or (wanted % divisor).any():
        return None
    low, high = -limit - weights, limit - weights
    if len(levels) == 1:
        only = (wanted // levels[0])[np.newaxis]
        return only if ((low <= only) & (only <= high)).all() else None
    for pair in itertools.islice(_pairs(levels, divisor), _PAIRS):
        added = np.zeros_like(weights)
        left = wanted.copy()
        others = [each for each in np.argsort(-np.abs(levels)).tolist() if each not in pair]
        for each in others:
            part = np.rint(left / levels[each]).astype(np.int64)
            added[each] = np.clip(part, low[each], high[each])
            left -= levels[each] * added[each]
        bounds = [(low[each], high[each]) for each in pair]
        found = _by_two(left // divisor, [int(levels[each]) // divisor for each in pair], bounds)
        if found is not None:
            added[list(pair)] = found
            return added
    return None


def _pairs(levels: Ints, divisor: int) -> Iterator[tuple[int, int]]:
    """Pairs of carriers that can make any multiple of the divisor, the smallest levels first."""
    ordered = np.argsort(np.abs(levels)).tolist()
    pairs = sorted(itertools.combinations(ordered, 2), key=lambda pair: abs(int(levels[pair[1]])))
    return (
        (one, other)
        for one, other in pairs
        if math.gcd(int(levels[one]), int(levels[other])) == divisor
    )


def _by_two(
    wanted: Ints, levels: Sequence[int], bounds: Sequence[tuple[Ints, Ints]]
) -> tuple[Ints, Ints] | None:
    """Whole numbers x and y within bounds with ``a x + b y`` as wanted, for coprime a and b."""
    (a, b), size = levels, abs(levels[1])
    inverse = pow(a, -1, size) if size > 1 else 0
    first = (wanted % size) * inverse % size
    # The solutions are x = first + t size; y is best near the middle, so start from there.
    middle = np.rint((wanted / a - first) / size / 2).astype(np.int64)
    x, y, open_ = np.zeros_like(wanted), np.zeros_like(wanted), np.ones(wanted.shape, np.bool_)
    starts = (np.zeros_like(middle), middle, 2 * middle, np.full_like(middle, -1))
    for start, shift in itertools.product(starts, _SHIFTS):
        one = first + (start + shift) * size
        other = (wanted - a * one) // b
        fits = open_ & (one >= bounds[0][0]) & (one <= bounds[0][1])
        fits &= (other >= bounds[1][0]) & (other <= bounds[1][1])
        x, y = np.where(fits, one, x), np.where(fits, other, y)
        open_ &= ~fits
        if not open_.any():
            return x, y
    return None
