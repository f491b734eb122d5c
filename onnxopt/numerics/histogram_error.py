"""The error that a quantization grid makes of numbers of which only a histogram is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.numerics.grids import Grid

__all__ = ["clipping_error", "rounding_and_clipping_error"]

Array = np.ndarray[Any, Any]


def rounding_and_clipping_error(edges: Array, density: Array, grid: Grid) -> float:
    """Integral of the squared error over a density that is even within each bin.

    With t the distance from 0 in steps, the error within the grid is t - rint(t); its square has
    the antiderivative rint(t) / 12 + (t - rint(t))^3 / 3. Outside it is the distance to the end.

    Args:
        edges: Ascending edges of the bins, [B + 1].
        density: Probability by bin divided by the width of the bin, [B].
        grid: The grid.

    Returns:
        The mean squared error, if the density's integral is 1.
    """
    steps = edges / grid.scale
    least = grid.levels.low - grid.zero_point
    most = grid.levels.high - grid.zero_point
    inside = np.clip(steps, least, most)
    whole = np.rint(inside)
    integral = whole / 12 + (inside - whole) ** 3 / 3
    integral += (steps - inside) ** 3 / 3
    return float((np.diff(integral) * density).sum()) * grid.scale**3


def clipping_error(edges: Array, density: Array, low: float, high: float) -> float:
    """Integral of the squared distance to an interval over a density that is even within bins."""
    outside = edges - np.clip(edges, low, high)
    return float((np.diff(outside**3) * density).sum()) / 3
