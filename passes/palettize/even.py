"""Numbers on an even grid: small integers times a scale for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["evenly_spaced"]

Array = np.ndarray[Any, Any]

#: Where the search for a scale begins, as parts of the one that reaches the largest number.
_COARSE = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_FINE = (1.0, 0.9, 0.8, 0.7)
#: With so many levels on a side the search is fine, since clipping pays less.
_MANY_LEVELS = 15
_STEPS = 3


def evenly_spaced(rows: Array, bits: int) -> Array:
    """Round each row to integers of so many bits, times a scale with little squared error.

    The integers are symmetric about zero: -1 and 1 for one bit (binarization: the best scale is the
    mean absolute number; Rastegari et al., XNOR-Net, 2016, arXiv 1603.05279), -1, 0 and 1 for two
    (ternary weights; Li et al., 2016, arXiv 1605.04711), up to -127 to 127 for eight. From several
    first scales, rounding and the scale that is best for these integers, ``<w, q> / <q, q>``, take
    turns, and the best that is found counts. Zeros stay zeros.

    Args:
        rows: Finite numbers, ``[channels, numbers]``, as float64.
        bits: From 1 to 8.

    Returns:
        The products as float32 rounds them, as float64.
    """
    zero = rows == 0
    sizes = np.abs(rows)
    if bits == 1:
        counts = np.maximum(np.count_nonzero(~zero, axis=1, keepdims=True), 1)
        scale = sizes.sum(axis=1, keepdims=True) / counts
        return _product(np.sign(rows), scale)
    most = (1 << (bits - 1)) - 1
    reach = sizes.max(axis=1, keepdims=True, initial=0) / most
    reach[reach == 0] = 1
    best, least = rows, np.full((len(rows), 1), np.inf)
    for part in _FINE if most >= _MANY_LEVELS else _COARSE:
        scale = reach * part
        for step in range(_STEPS):
            integers = np.clip(np.rint(rows / scale), -most, most)
            if step < _STEPS - 1:
                squares = np.square(integers).sum(axis=1, keepdims=True)
                fitted = (rows * integers).sum(axis=1, keepdims=True)
                scale = np.where(squares > 0, fitted / np.maximum(squares, 1), scale)
        found = _product(integers, scale)
        error = np.square(rows - found).sum(axis=1, keepdims=True)
        best, least = np.where(error < least, found, best), np.minimum(error, least)
    return np.where(zero, 0.0, best)


def _product(integers: Array, scale: Array) -> Array:
    # A product of float32 and a small integer is exact in float64, so that it is rounded once.
    exact = integers * scale.astype(np.float32).astype(np.float64)
    # Adding 0 makes -0.0, which no integer stands for, a 0.0.
    return exact.astype(np.float32).astype(np.float64) + 0.0
