"""How much each weight matters, by itself and by what it is multiplied with.

All work on weights as ``[groups, rows, columns]`` and Gram matrices of the columns' inputs as
``[groups, columns, columns]``; a Gram matrix is the sum over samples and places of ``x x^T``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["lamp", "magnitude", "output_error", "wanda"]

Array = np.ndarray[Any, Any]


def magnitude(weight: Array) -> Array:
    """The absolute value of each weight."""
    return np.abs(weight)


def wanda(weight: Array, gram: Array) -> Array:
    """Absolute weight times the norm of its input.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023,
    arXiv 2306.11695. Meant to be compared within a row.
    """
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0))
    scores: Array = np.abs(weight) * norms[..., None, :]
    return scores


def lamp(weight: Array) -> Array:
    """Square of each weight, divided by the sum of all squares that are not smaller.

    Comparable between layers, since each layer's largest weight scores 1. Source: Lee et al.,
    Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, arXiv 2010.07611.
    """
    squares = np.square(weight.reshape(-1))
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros_like(squares)
    scores[order] = np.divide(squares[order], left, out=np.zeros_like(left), where=left > 0)
    return scores.reshape(weight.shape)


def output_error(before: Array, after: Array, gram: Array | None) -> float:
    """The relative error of what a layer computes, root of a mean over all outputs.

    Args:
        before: The weights as they were.
        after: As they are.
        gram: Gram matrix of the inputs; inputs count as uncorrelated and alike when None.
    """
    change = before - after
    noise, signal = _energy(change, gram), _energy(before, gram)
    return float(np.sqrt(noise / signal)) if signal > 0 else 0.0


def _energy(weight: Array, gram: Array | None) -> float:
    if gram is None:
        return float(np.sum(np.square(weight)))
    return max(float(np.sum((weight @ gram) * weight)), 0.0)
