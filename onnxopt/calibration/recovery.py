"""Better integers and biases for a layer, from what was observed of its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.calibration.gram import GramObserver
from onnxopt.calibration.rows import RowsObserver
from onnxopt.numerics.grids import Grid
from onnxopt.numerics.layer_inputs import LayerInput
from onnxopt.numerics.rounding import PairLimit, bias_shift, round_with_compensation

__all__ = ["corrected_bias", "recovered_integers"]

Array = np.ndarray[Any, Any]

#: With so many rows for each column, what is near on these rows is near on others too.
_MANY = 20
_SWEEPS = 3
#: Errors of rounding an input are averaged over rows that take so many bytes, at most.
_ROW_BYTES = 1 << 20


def recovered_integers(
    weights: Array,
    integers: Array,
    scales: Array,
    layer: LayerInput,
    gram: GramObserver,
    *,
    grid: Grid | None = None,
    orders: Sequence[Array] = (),
    pair_limit: int | None = None,
) -> Array:
    """Integers with which the layer's outputs are nearer to those of the float weights.

    Args:
        weights: float32, in the layout that ``layer`` describes.
        integers: What they were rounded to, in the same layout; at most 127 of magnitude.
        scales: Of each output, [outputs].
        layer: How the layer's input becomes rows.
        gram: Of that input. Where it has seen nothing, the integers stay.
        grid: The grid of the input, if it is quantized too: its rounding is noise that the weights
            should not make more of.
        orders: How kernels lay out the columns of the rows, permutations [K] each, where pairs of
            weights are limited.
        pair_limit: What two neighbours of one sign in those orders may add up to.

    Returns:
        Integers of the same dtype and layout.
    """
    if not gram.count:
        return integers
    matrix = layer.matrix(weights)
    mean = gram.gram / gram.count
    if grid is not None:
        columns = np.arange(mean.shape[1])
        mean[:, columns, columns] += grid.scale**2 / 12
    pairs = None if pair_limit is None or not orders else PairLimit.along(orders, pair_limit)
    known = gram.count >= _MANY * matrix.shape[1]
    found = round_with_compensation(
        matrix,
        _by_group(scales, matrix),
        mean,
        start=layer.matrix(integers),
        pairs=pairs,
        sweeps=_SWEEPS if known else 0,
    )
    return np.ascontiguousarray(layer.weights(found, integers.shape), integers.dtype)


def corrected_bias(
    bias: Array | None,
    weights: Array,
    quantized: Array,
    layer: LayerInput,
    gram: GramObserver,
    rows: RowsObserver | None = None,
    grid: Grid | None = None,
) -> Array:
    """A bias with which the means of the outputs stay, float32 [outputs].

    The mean input tells what the weights' errors add to the outputs; rows of the input tell what
    the rounding and clipping of the input itself adds.

    Args:
        bias: [outputs], or None.
        weights: The float weights.
        quantized: What the integers stand for, in the same layout.
        layer: How the layer's input becomes rows.
        gram: Of that input.
        rows: Of that input; with ``grid``.
        grid: The grid of the input, if it is quantized too.
    """
    matrix, stands_for = layer.matrix(weights), layer.matrix(quantized)
    shift = np.zeros((len(matrix), matrix.shape[2]))
    if gram.count:
        shift += bias_shift(stands_for - matrix, gram.mean)
    if rows is not None and grid is not None and rows.seen:
        turned = rows.some(_ROW_BYTES).transpose(1, 0, 2)
        error = (grid.round(turned) - turned).mean(axis=1, dtype=np.float64)
        shift += bias_shift(stands_for, error)
    before = np.zeros(shift.size) if bias is None else bias.astype(np.float64)
    return (before + shift.reshape(-1)).astype(np.float32)


def _by_group(scales: Array, matrix: Array) -> Array:
    return scales.reshape(len(matrix), matrix.shape[2])
