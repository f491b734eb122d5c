"""Drop weights and move the others so that the layer's outputs change least.

With a Gram matrix H of a layer's inputs, dropping weights changes its outputs by
``tr((W - W0) H (W - W0)^T)``. Two steps make that small:

1. `sweep` goes through the columns. In each it drops what costs least by the inverse Hessian, and
   lets the columns that follow make up for it. Source: Frantar and Alistarh, SparseGPT, ICML 2023,
   arXiv 2301.00774; for stored integers each column is rounded on the way, as in GPTQ (Frantar et
   al., 2022, arXiv 2210.17323).
2. `refit` keeps the pattern of zeros and solves for the rest by conjugate gradients, each row by
   itself, since the sweep can only make use of columns that come later. It never increases the
   error.

Everything works on ``[groups, rows, columns]``, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .layers import Layout
from .patterns import Pattern

__all__ = ["Rounding", "damped", "refit", "sweep"]

Array = np.ndarray[Any, Any]
#: Rounds the values of a column, ``[groups, rows]``, given its index.
Rounding = Callable[[Array, int], Array]

#: So many columns are swept before the rest is updated, and share one threshold.
_BLOCK_COLUMNS = 128
#: By so much of itself the squared residual of a row has to fall.
_ENOUGH = 1e-8
#: Least damping, so that a layer whose inputs are all zero can be solved.
_TINY = 1e-30


def damped(gram: Array, damping: float) -> Array:
    """A Gram matrix with a part of its mean diagonal added to it, so that it can be inverted."""
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    extra = damping * diagonal.mean(axis=-1) + _TINY
    result: Array = gram + extra[..., None, None] * np.eye(gram.shape[-1])
    return result


def sweep(
    weight: Array,
    gram: Array,
    pattern: Pattern,
    layout: Layout,
    ratio: float,
    nearest: Rounding | None = None,
) -> Array:
    """Drop a share of the weights, column by column; see the module.

    Args:
        weight: The weights.
        gram: Gram matrix of the inputs, damped.
        pattern: Which weights may be dropped together.
        layout: Of the weight.
        ratio: Share to drop.
        nearest: Rounds a column, given its index, to what can be stored; None for no rounding.

    Returns:
        The new weights; dropped ones are 0.
    """
    work = weight.copy()
    inverse = np.linalg.inv(gram)
    upper = np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2), -1, -2)
    cost = np.diagonal(upper, axis1=-2, axis2=-1)[..., None, :]
    keep = np.ones(weight.shape, np.bool_)
    if pattern.kind == "block":
        keep = pattern.keep(np.square(work / cost), layout, ratio)
    step = pattern.m if pattern.kind == "n:m" else 1
    width = max(_BLOCK_COLUMNS // step, 1) * step
    for start in range(0, weight.shape[-1], width):
        end = min(start + width, weight.shape[-1])
        if pattern.kind == "unstructured":
            scores = np.square(work[..., start:end] / cost[..., start:end])
            keep[..., start:end] = pattern.keep(scores, layout, ratio)
        errors = np.empty((*work.shape[:2], end - start))
        for column in range(start, end):
            if pattern.kind == "n:m" and (column - start) % step == 0:
                group = slice(column, column + step)
                scores = np.square(work[..., group] / cost[..., group])
                keep[..., group] = pattern.keep(scores, layout, ratio)
            new = np.where(keep[..., column], work[..., column], 0.0)
            if nearest is not None:
                new = nearest(new, column)
            error = (work[..., column] - new) / cost[..., column]
            work[..., column] = new
            rest = slice(column + 1, end)
            work[..., rest] -= error[..., None] * upper[..., column, None, rest]
            errors[..., column - start] = error
        work[..., end:] -= errors @ upper[..., start:end, end:]
    return work


def refit(weight: Array, start: Array, gram: Array, steps: int) -> Array:
    """Solve for the weights that are not 0, by preconditioned conjugate gradients.

    Args:
        weight: The weights as they were, whose outputs are wanted.
        start: Weights with zeros where zeros stay.
        gram: Gram matrix of the inputs, damped.
        steps: Most steps.

    Returns:
        Weights with the same zeros (and perhaps more) whose outputs are no further off.
    """
    keep = start != 0
    scale = 1.0 / np.diagonal(gram, axis1=-2, axis2=-1)[..., None, :]
    solution = start.copy()
    residual = np.where(keep, (weight - solution) @ gram, 0.0)
    direction = residual * scale
    energy = np.sum(residual * direction, axis=-1, keepdims=True)
    enough = _ENOUGH * energy
    for _ in range(steps):
        if np.all(energy <= enough):
            break
        slope = np.where(keep, direction @ gram, 0.0)
        curvature = np.sum(direction * slope, axis=-1, keepdims=True)
        length = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
        solution += length * direction
        residual -= length * slope
        scaled = residual * scale
        before, energy = energy, np.sum(residual * scaled, axis=-1, keepdims=True)
        direction = (
            scaled
            + np.divide(energy, before, out=np.zeros_like(energy), where=before > 0) * direction
        )
    return solution
