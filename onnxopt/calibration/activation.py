"""One tensor of one sample, as observers see it."""

from __future__ import annotations

import functools
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
        block: So many channels lie together: the array says that it is [N, C, ...], and its memory
            is [N, C / block, ..., block].

    Attributes:
        numbers: All numbers in the order of memory, [numbers].
        shape: Shape of the tensor.

    Raises:
        UnobservableError: When they are no floating-point numbers, or not all are finite.
    """

    def __init__(self, array: Array, lot: int | None = None, block: int = 1) -> None:
        if array.dtype.kind in "iubOSU":
            raise UnobservableError("holds no floating-point numbers")
        wide = array if array.dtype.char in "fd" else array.astype(np.float32)
        self.lot = lot
        self.shape: tuple[int, ...] = wide.shape
        self.numbers: Array = wide.reshape(-1)  # a copy where they do not lie together
        self._block = block
        self._channels: dict[int, tuple[Array, Array]] = {}
        self._extremes: tuple[float, float] | None = None

    @functools.cached_property
    def values(self) -> Array:
        """The numbers in their shape, in order; made first where channels lie together."""
        if self._block == 1:
            return self.numbers.reshape(self.shape)
        return np.ascontiguousarray(self.parted.reshape(self.shape))

    @property
    def parted(self) -> Array:
        """A view of the numbers as [N, C / b, b, ...], with b channels that lie together."""
        batch, channels, *sizes = self.shape
        laid = self.numbers.reshape(batch, channels // self._block, *sizes, self._block)
        last = laid.ndim - 1
        return laid.transpose(0, 1, last, *range(2, last))

    def channel_extremes(self, axis: int) -> tuple[Array, Array]:
        """Least and greatest number of each channel."""
        axis = self._axis(axis)
        if axis not in self._channels:
            laid = self._laid(axis)
            low = _by_channel(np.minimum, laid, self.shape[-1])
            high = _by_channel(np.maximum, laid, self.shape[-1])
            _check_finite(float(low.min()), float(high.max()))
            self._channels[axis] = (low, high)
        return self._channels[axis]

    def channel_sums(self, axis: int) -> Array:
        """Sum over each channel, as products with ones, which is the fastest way."""
        laid = self._laid(self._axis(axis))
        before, _, after, block = laid.shape
        if after == block == 1:
            return np.ones(before, laid.dtype) @ laid.reshape(before, -1)
        ones = np.ones(after, laid.dtype)
        sums = laid[..., 0] @ ones if block == 1 else ones @ laid
        return np.asarray(sums.sum(axis=0).reshape(-1))

    def _laid(self, axis: int) -> Array:
        """The numbers as they lie: [before, C / block, after, block], if these are channels."""
        if axis == 1 and self._block > 1:
            outer = self.shape[1] // self._block
            return self.numbers.reshape(self.shape[0], outer, -1, self._block)
        before, after = math.prod(self.shape[:axis]), math.prod(self.shape[axis + 1 :])
        return self.values.reshape(before, self.shape[axis], after, 1)

    @property
    def extremes(self) -> tuple[float, float]:
        """Least and greatest number of all."""
        if self._extremes is None:
            if self._channels:
                lows, highs = next(iter(self._channels.values()))
                low, high = float(lows.min()), float(highs.max())
            else:
                low, high = _extremes(self.numbers)
            _check_finite(low, high)
            self._extremes = (low, high)
        return self._extremes

    def _axis(self, axis: int) -> int:
        if not -len(self.shape) <= axis < len(self.shape):
            raise UnobservableError(f"has {len(self.shape)} dimensions and so no axis {axis}")
        return axis % len(self.shape)


def _by_channel(reduce: np.ufunc, laid: Array, line: int) -> Array:
    """Least or greatest number of each channel, [C].

    Args:
        reduce: `np.minimum` or `np.maximum`.
        laid: The numbers as in `Activation._laid`.
        line: Numbers of each channel along the last axis of the tensor.
    """
    before, outer, after, block = laid.shape
    if block > 1:
        # Line by line first: NumPy is slow where it reduces a few channels at a time.
        lines = laid.reshape(before, outer, after // line, line * block)
        laid = reduce.reduce(lines, axis=2).reshape(before, outer, line, block)
    return np.asarray(reduce.reduce(reduce.reduce(laid, axis=2), axis=0).reshape(-1))


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
