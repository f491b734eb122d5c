"""Numbers that are small integers times a scale for each channel: the integers, and the scales.

What per-channel int8, ternary and binary weights have in common. Nothing in a model says that its
weights are of this kind, so the scales are found from the numbers alone: the largest absolute value
of a channel is one of 127 multiples of the scale, and each of them is tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder
from .numbers import as_bits

__all__ = ["Scaled", "scaled"]

#: Integers are from -127 to 127.
_MOST = 127
#: How far a quotient may be from an integer, because of the rounding of float32.
_ROUNDING = 1e-4
#: So many float32 next to the step that was found are tried.
_NEIGHBOURS = np.arange(-4, 5, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A tensor as integers times scales.

    Attributes:
        integers: As int8, in the shape of the tensor.
        scales: As float32, of size 1 on all axes but the channel's.
    """

    integers: Array
    scales: Array

    def multiplied(self, builder: DecoderBuilder, integers: ir.Value) -> ir.Value:
        """The nodes that give the tensor, once its integers are there in its shape."""
        wide = builder.op("Cast", integers, to=ir.DataType.FLOAT)
        return builder.op("Mul", wide, builder.store(self.scales))


def scaled(tensor: Array) -> Scaled | None:
    """Find the integers and scales of a float32 tensor, or None if it is not of this kind.

    The product, rounded to float32, is the tensor bit by bit.
    """
    if tensor.dtype != np.float32 or tensor.ndim < 2:
        return None
    for axis in sorted({0, 1, tensor.ndim - 1}):
        channels = np.moveaxis(tensor, axis, 0)
        steps = np.fromiter(_steps(channels), np.float32)
        if steps.size < len(channels):
            continue
        scales = steps.reshape([-1 if each == axis else 1 for each in range(tensor.ndim)])
        with np.errstate(invalid="ignore"):  # of NaN, which is found to be none below
            integers = np.rint(tensor / scales).astype(np.int8)
        if np.array_equal(as_bits(integers.astype(np.float32) * scales), as_bits(tensor)):
            return Scaled(integers, scales)
    return None


def _steps(channels: Array) -> Iterator[np.float32]:
    """The step of each channel, up to the first that has none."""
    for channel in channels:
        step = _step(channel.reshape(-1))
        if step is None:
            return
        yield step


def _step(row: Array) -> np.float32 | None:
    """The largest float32 of which all numbers are multiples by integers up to 127, rounded."""
    sizes = np.unique(np.abs(row[: 4 * _MOST]))
    if len(sizes) > _MOST + 1:
        return None  # a look at the first few is enough for most
    sizes = np.unique(np.abs(row))
    sizes = sizes[sizes > 0]
    if len(sizes) == 0:
        return np.float32(1)
    largest = float(sizes[-1])
    if len(sizes) > _MOST or not np.isfinite(largest):
        return None
    quotients = sizes.astype(np.float64) / largest * np.arange(1, _MOST + 1)[:, np.newaxis]
    whole = np.abs(quotients - np.rint(quotients)).max(axis=1) < _ROUNDING
    if not whole.any():
        return None
    most = int(np.argmax(whole)) + 1
    multiples = np.rint(quotients[most - 1]).astype(np.float32)
    near = np.float32(largest / most)
    if near < np.finfo(np.float32).tiny:
        return None
    tried = (near.view(np.int32) + _NEIGHBOURS).view(np.float32)
    fits = (multiples * tried[:, np.newaxis] == sizes).all(axis=1)
    found: np.float32 = tried[np.argmax(fits)]
    return found if fits.any() else None
