"""Moving scale from the channels of an activation into the weights that read it.

``x W = (x / s) (s W)``, with a factor s for each channel. Channels that are much larger than the
others no longer widen the grid of all (Xiao et al., "SmoothQuant", 2022; through a rectifier this
is the cross-layer equalization of Nagel et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.numerics.grids import Levels, grid_over
from onnxopt.numerics.weight_scales import absmax_scales, round_to_nearest

__all__ = ["STRENGTHS", "by_column", "quantized_error", "smoothing_factors"]

Array = np.ndarray[Any, Any]

#: Strengths that are worth trying; 0.5 shares the spread evenly between activation and weights.
STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Factors stay within this of each other's geometric mean, so that no float runs out of range.
_WIDEST = 1e4


def smoothing_factors(activation: Array, weights: Array, strength: float) -> Array:
    """Factors ``|x|^strength / |w|^(1 - strength)`` with a geometric mean of 1, float64 [C].

    Channels of which nothing is known (no activation, or no weight) keep a factor of 1.

    Args:
        activation: Greatest magnitude of the activation by channel, [C].
        weights: Greatest magnitude of the weights that read the channel, [C].
        strength: From 0 (the weights become even) to 1 (the activation does).
    """
    known = (activation > 0) & (weights > 0)
    logs = np.zeros(activation.shape)
    logs[known] = strength * np.log(activation[known].astype(np.float64))
    logs[known] -= (1 - strength) * np.log(weights[known].astype(np.float64))
    if known.any():
        logs[known] -= logs[known].mean()
    return np.exp(np.clip(logs, -np.log(_WIDEST), np.log(_WIDEST)))


def by_column(factors: Array, groups: int, columns: int) -> Array:
    """Factors by channel as factors by column of the layer's rows, [groups, K].

    The rows of a convolution hold each channel once for every position of the kernel.
    """
    grouped = factors.reshape(groups, -1)
    return np.repeat(grouped, columns // grouped.shape[1], axis=1)


def quantized_error(
    rows: Array,
    matrices: Sequence[Array],
    expected: Sequence[Array],
    factors: Array,
    ends: tuple[float, float],
    levels: Levels,
    steps: int = 127,
) -> float:
    """Power of the error of layers in integers, relative to the power of their outputs.

    Args:
        rows: Rows of the input, [groups, R, K].
        matrices: Weights of each layer that reads it, [groups, K, M].
        expected: What each layer makes of the rows, [groups, R, M].
        factors: By column, [groups, K].
        ends: Least and greatest number of the input after it was divided by its factors.
        levels: Integers of the input.
        steps: Greatest integer of the weights, which have a scale for each output.
    """
    rounded = grid_over(*ends, levels).round(rows / factors[:, None])
    noise = power = 0.0
    for matrix, outputs in zip(matrices, expected, strict=True):
        moved = matrix * factors[:, :, None]
        scales = absmax_scales(moved, steps)
        weights = round_to_nearest(moved, scales, -steps, steps) * scales[:, None]
        noise += float(np.square(rounded @ weights - outputs).sum(dtype=np.float64))
        power += float(np.square(outputs).sum(dtype=np.float64))
    return noise / power if power > 0 else 0.0
