"""Scales of weights: one for each output, chosen by the error they cause."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.numerics.gram import output_error

__all__ = ["absmax_scales", "best_scales", "round_to_nearest", "usable_scales"]

Array = np.ndarray[Any, Any]

#: Weights with a smaller step are zeros to everything that reads them, and the step, or its product
#: with an activation's, would leave the normal numbers of float32.
_LEAST_STEP = 1e-20
#: Factors by which the scale that clips nothing is made smaller.
_SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
#: Wider layers are judged by the diagonal of the Gram matrix alone.
_FULL_COLUMNS = 1152


def absmax_scales(matrix: Array, steps: int = 127) -> Array:
    """Scales with which no weight is clipped, float32 [G, M]; 1 where all weights are next to 0.

    Args:
        matrix: [G, K, M].
        steps: The greatest integer.
    """
    scales = np.abs(matrix).max(axis=1, initial=0.0) / steps
    return usable_scales(scales)


def usable_scales(scales: Array) -> Array:
    """The scales as float32; 1 for those with which nothing could be divided."""
    return np.where(scales > _LEAST_STEP, scales, 1.0).astype(np.float32)


def round_to_nearest(matrix: Array, scales: Array, low: int = -127, high: int = 127) -> Array:
    """Integers, int16 [G, K, M]."""
    return np.clip(np.rint(matrix / scales[:, None]), low, high).astype(np.int16)


def best_scales(matrix: Array, steps: int = 127, gram: Array | None = None) -> Array:
    """Scales with the least squared error of each output, float32 [G, M].

    A smaller scale rounds all weights more finely and clips the largest ones.

    Args:
        matrix: [G, K, M].
        steps: The greatest integer, as well as the least one's magnitude.
        gram: Mean of ``x^T x`` over the layer's inputs, [G, K, K]; without it all inputs weigh
            alike.
    """
    widest = absmax_scales(matrix, steps)
    best, least = widest.copy(), np.full(widest.shape, np.inf)
    for shrink in _SHRINKS:
        scales = (widest * np.float32(shrink)).astype(np.float32)
        change = round_to_nearest(matrix, scales, -steps, steps) * scales[:, None] - matrix
        error = _error(change, gram)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best


def _error(change: Array, gram: Array | None) -> Array:
    if gram is None:
        return np.asarray(np.square(change, dtype=np.float64).sum(axis=1))
    if gram.shape[-1] <= _FULL_COLUMNS:
        return output_error(gram, change)
    diagonal = np.diagonal(gram, axis1=1, axis2=2)[:, :, None]
    return np.asarray((np.square(change) * diagonal).sum(axis=1))
