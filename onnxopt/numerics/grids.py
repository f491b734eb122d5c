"""Quantization grids: which numbers an integer can stand for.

An integer q stands for ``(q - zero_point) * scale`` (ONNX's QuantizeLinear and DequantizeLinear;
rounding is half to even, and what lies outside saturates).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["INT8", "UINT8", "Grid", "Levels", "grid_over", "levels_of"]

Array = np.ndarray[Any, Any]

#: Smaller scales would make float32 kernels divide by denormal numbers.
_LEAST_SCALE = 1e-30


@dataclasses.dataclass(frozen=True)
class Levels:
    """The integers of a grid.

    Attributes:
        low: Least integer.
        high: Greatest integer.
        symmetric: The zero point is the middle (0, or 128 for uint8), and as many steps are used to
            either side.
    """

    low: int
    high: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"levels from {self.low} to {self.high} are none")

    @property
    def middle(self) -> int:
        """The zero point of symmetric grids."""
        return (self.low + self.high + 1) // 2

    @property
    def steps(self) -> int:
        """Steps to either side of the middle that both sides have."""
        return min(self.middle - self.low, self.high - self.middle)


UINT8 = Levels(0, 255)
INT8 = Levels(-128, 127)


def levels_of(bits: int, *, signed: bool) -> Levels:
    """All integers of so many bits."""
    return Levels(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else Levels(0, 2**bits - 1)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A uniform grid.

    Attributes:
        scale: Distance of neighbours, a float32 number.
        zero_point: The integer that stands for 0.
        levels: The integers.
    """

    scale: float
    zero_point: int
    levels: Levels

    @property
    def least(self) -> float:
        """The least number on the grid."""
        return (self.levels.low - self.zero_point) * self.scale

    @property
    def greatest(self) -> float:
        """The greatest number on the grid."""
        return (self.levels.high - self.zero_point) * self.scale

    def quantize(self, numbers: Array) -> Array:
        """The integers of numbers, int64 of the same shape."""
        steps = np.rint(numbers.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, self.levels.low, self.levels.high).astype(np.int64))

    def round(self, numbers: Array) -> Array:
        """Numbers as they come back from their integers, float32 of the same shape."""
        steps = np.rint(numbers.astype(np.float32) / np.float32(self.scale))
        least, most = self.levels.low - self.zero_point, self.levels.high - self.zero_point
        return np.asarray(np.clip(steps, least, most) * np.float32(self.scale))


def grid_over(low: float, high: float, levels: Levels) -> Grid:
    """The finest grid of these levels that reaches over an interval and holds 0.

    The zero point is rounded, so that the ends may lie half a step outside. An interval without
    extent (a tensor of zeros) gets a scale of 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if levels.symmetric:
        scale = max(-low, high) / levels.steps
        zero_point = levels.middle
    else:
        scale = (high - low) / (levels.high - levels.low)
        ratio = levels.low - low / scale if scale > 0 else levels.low
        zero_point = int(np.clip(round(ratio), levels.low, levels.high))
    if scale < _LEAST_SCALE:
        scale = 1.0 if low == high else _LEAST_SCALE
    return Grid(float(np.float32(scale)), zero_point, levels)
