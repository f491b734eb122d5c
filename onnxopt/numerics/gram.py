"""What the Gram matrix ``H = X^T X / n`` of a linear layer's input is good for.

The mean squared change of the outputs, when weights W [K, M] change by E, is ``E^T H E`` on the
diagonal: this is the second-order error of Optimal Brain Surgeon (Hassibi and Stork 1993) for one
layer, which is exact, since the layer is linear.

Arrays are stacked by group: H is [G, K, K], weights are [G, K, M].
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "damped",
    "inverse_factor",
    "mean_gram",
    "output_error",
    "refit",
    "squares",
]

Array = np.ndarray[Any, Any]

#: Inputs that were never active leave a Gram matrix singular; GPTQ adds 1 % of the mean diagonal.
_DAMPING = 0.01
_MOST_DAMPING = 1.0
#: So many rows are multiplied in float32; sums of these products are float64.
_ROWS = 1024
#: Products of so many groups are made one by one.
_FEW = 8


def squares(rows: Array) -> Array:
    """Sum of ``x^T x`` over the rows x, float64 [G, K, K].

    Args:
        rows: float32 [G, R, K].
    """
    total = np.zeros((len(rows), rows.shape[2], rows.shape[2]))
    for start in range(0, rows.shape[1], _ROWS):
        block = rows[:, start : start + _ROWS]
        # One by one: NumPy has a matrix times its own transpose computed by halves.
        few = len(rows) <= _FEW
        total += np.stack([x.T @ x for x in block]) if few else block.transpose(0, 2, 1) @ block
    return total


def mean_gram(rows: Array) -> Array:
    """Mean of ``x^T x`` over the rows x, float64 [G, K, K]; see `squares`."""
    return np.asarray(squares(rows) / max(1, rows.shape[1]))


def damped(gram: Array, share: float = _DAMPING) -> Array:
    """A Gram matrix with a share of its mean diagonal added to the diagonal, float64 [G, K, K].

    An input that was never active gets a diagonal of 1, as in GPTQ.
    """
    size = gram.shape[-1]
    diagonal = np.diagonal(gram, axis1=1, axis2=2).astype(np.float64)
    extra = np.broadcast_to(share * diagonal.mean(axis=1, keepdims=True), diagonal.shape)
    extra = np.where(diagonal + extra > 0, extra, 1.0)
    result = gram.astype(np.float64)
    result[:, np.arange(size), np.arange(size)] += extra
    return result


def output_error(gram: Array, change: Array) -> Array:
    """Mean squared change of each output when the weights change, [G, M].

    Args:
        gram: Mean of ``x^T x`` over the rows, [G, K, K].
        change: Of the weights, [G, K, M].
    """
    return np.asarray(((gram @ change) * change).sum(axis=1))


def inverse_factor(gram: Array, share: float = _DAMPING) -> Array:
    """The upper triangular U of ``H^-1 = U^T U``, float64 [G, K, K].

    Row k of U, divided by its diagonal, says how the weights after k make up for a change of
    weight k when those before it are settled (Frantar et al., GPTQ, 2022, and SparseGPT, 2023). The
    damping grows until the matrix is safely positive definite.
    """
    while True:
        try:
            inverse = np.linalg.inv(damped(gram, share))
            symmetric = (inverse + inverse.transpose(0, 2, 1)) / 2
            return np.linalg.cholesky(symmetric).transpose(0, 2, 1)
        except np.linalg.LinAlgError:
            if share >= _MOST_DAMPING:
                raise
            share *= 10


def refit(gram: Array, weights: Array, kept: Array, share: float = 1e-4) -> Array:
    """Weights of the kept inputs that give the nearest outputs without the others.

    The least squares solution ``W_k + H_kk^-1 H_kr W_r`` for kept inputs k and removed inputs r
    (ThiNet, Luo et al. 2017; also what OBS gives when weights are removed together).

    Args:
        gram: Mean of ``x^T x``, [K, K], of one group.
        weights: [K, M].
        kept: Which inputs are kept, bool [K].
        share: Damping, relative to the mean diagonal.

    Returns:
        [kept inputs, M].
    """
    if kept.all() or not kept.any():
        return np.asarray(weights[kept])
    among = damped(gram[np.ix_(kept, kept)][None], share)[0]
    across = gram[np.ix_(kept, ~kept)].astype(np.float64)
    return np.asarray(weights[kept] + np.linalg.solve(among, across @ weights[~kept]))
