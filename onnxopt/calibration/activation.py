"""One tensor of one sample, as observers see it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["Activation", "UnobservableError"]

Array = np.ndarray[Any, Any]

#: Numbers that stay in a processor's cache between two looks at them.
_BLOCK = 1 << 16


class UnobservableError(Exception):
    """A tensor cannot be observed as asked; the message is a phrase about it, without its name."""


class Activation:
    """A tensor's numbers, and their extremes, which several observers want.

    Args:
        array: The numbers, of any floating-point type; those of 16 bits and fewer become float32.
        lot: What the sample drew; None when no rows of it will be kept. See
            `onnxopt.calibration.lots`.

    Raises:
        UnobservableError: When they are no floating-point numbers, or not all are finite.
    """

    def __init__(self, array: Array, lot: int | None = None) -> None:
        if array.dtype.kind in "iubOSU":
            raise UnobservableError("holds no floating-point numbers")
        wide = array if array.dtype.char in "fd" else array.astype(np.float32)
        self.lot = lot
        self.values: Array = wide if wide.flags.c_contiguous else np.ascontiguousarray(wide)
        self._channels: dict[int, tuple[Array, Array]] = {}
        self._extremes: tuple[float, float] | None = None

    def channel_extremes(self, axis: int) -> tuple[Array, Array]:
        """Least and greatest number of each channel."""
        if not -self.values.ndim <= axis < self.values.ndim:
            raise UnobservableError(f"has {self.values.ndim} dimensions and so no axis {axis}")
        axis %= self.values.ndim
        if axis not in self._channels:
            others = tuple(each for each in range(self.values.ndim) if each != axis)
            low, high = self.values.min(axis=others), self.values.max(axis=others)
            _check_finite(float(low.min()), float(high.max()))
            self._channels[axis] = (low, high)
        return self._channels[axis]

    @property
    def extremes(self) -> tuple[float, float]:
        """Least and greatest number of all."""
        if self._extremes is None:
            if self._channels:
                lows, highs = next(iter(self._channels.values()))
                low, high = float(lows.min()), float(highs.max())
            else:
                low, high = _extremes(self.values.reshape(-1))
            _check_finite(low, high)
            self._extremes = (low, high)
        return self._extremes


def _extremes(numbers: Array) -> tuple[float, float]:
    """Least and greatest number, block by block, so that memory is read once for both."""
    if len(numbers) <= 2 * _BLOCK:
        return float(np.minimum.reduce(numbers)), float(np.maximum.reduce(numbers))
    blocks = [numbers[start : start + _BLOCK] for start in range(0, len(numbers), _BLOCK)]
    found = [(np.minimum.reduce(block), np.maximum.reduce(block)) for block in blocks]
    lows, highs = np.array(found).T
    return float(lows.min()), float(highs.max())  # min and max pass NaN on


def _check_finite(low: float, high: float) -> None:
    if math.isnan(low) or math.isnan(high):
        raise UnobservableError("is not a number (NaN)")
    if math.isinf(low) or math.isinf(high):
        raise UnobservableError("is infinite")
