"""Small numbers packed into bytes, and the nodes that unpack them.

Numbers of 1, 2 or 4 bits stand in a byte from its lowest bits up: the first share of the vector in
the lowest bits of all bytes, the next share above it, and so on, so that unpacking works on long
rows. They are unpacked by two shifts of unsigned bytes: to the left, so that what stands above a
number falls off, and back to the right.
Numbers of 3, 5, 6 and 7 bits are split into such parts, which are unpacked each for itself and
added. ``BitShift`` is in every opset from 11 on; uint4 would need 21.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder

__all__ = ["pack", "packed_bytes", "store_packed"]

_BYTE_BITS = 8


def pack(numbers: Array, width: int) -> Array:
    """Pack numbers below 2**width into bytes; width is 1, 2 or 4.

    Args:
        numbers: Vector of uint8.
        width: Bits of each.

    Returns:
        Vector of uint8; what is left of the last byte is zero.
    """
    lanes = _BYTE_BITS // width
    padded = np.zeros(-(-numbers.size // lanes) * lanes, np.uint8)
    padded[: numbers.size] = numbers
    shifts = np.arange(lanes, dtype=np.uint8).reshape(-1, 1) * np.uint8(width)
    packed: Array = np.bitwise_or.reduce(padded.reshape(lanes, -1) << shifts, axis=0)
    return packed.astype(np.uint8)


def packed_bytes(count: int, width: int) -> int:
    """Bytes of so many numbers of this width."""
    return sum(-(-count * part // _BYTE_BITS) for part, _ in _planes(width))


def store_packed(
    builder: DecoderBuilder, numbers: Array, width: int, shape: Sequence[int] | None = None
) -> ir.Value:
    """Store numbers below 2**width and unpack them.

    Args:
        builder: Gets the parts and nodes.
        numbers: Vector of uint8.
        width: Bits of each, 1 to 8.
        shape: Shape of the result; a vector when None.

    Returns:
        The numbers as int32.
    """
    shape = (numbers.size,) if shape is None else shape
    total = None
    for part, place in _planes(width):
        plane = (numbers >> np.uint8(place)) & np.uint8((1 << part) - 1)
        unpacked = _store_plane(builder, plane, part, place, shape)
        cast = builder.op("Cast", unpacked, to=ir.DataType.INT32)
        total = cast if total is None else builder.op("Add", total, cast)
    assert total is not None
    return total


def _planes(width: int) -> list[tuple[int, int]]:
    """Bits and place of the parts that a number is split into."""
    if width == _BYTE_BITS:
        return [(_BYTE_BITS, 0)]
    found, place = [], 0
    for part in (1, 2, 4):
        if width & part:
            found.append((part, place))
            place += part
    return found


def _store_plane(
    builder: DecoderBuilder, plane: Array, width: int, place: int, shape: Sequence[int]
) -> ir.Value:
    """Store the bits of one plane; uint8 of the given shape, shifted to their place."""
    if width == _BYTE_BITS:
        return builder.store(plane.reshape(shape))
    lanes = _BYTE_BITS // width
    packed = builder.store(pack(plane, width).reshape(1, -1))
    left = np.arange(lanes - 1, -1, -1, dtype=np.uint8).reshape(-1, 1) * np.uint8(width)
    value = builder.op("BitShift", packed, builder.share(left), direction="LEFT")
    right = builder.share(np.array([_BYTE_BITS - width], np.uint8))
    value = builder.op("BitShift", value, right, direction="RIGHT")
    if place:
        value = builder.op(
            "BitShift", value, builder.share(np.array([place], np.uint8)), direction="LEFT"
        )
    if math.prod(shape) % lanes == 0:
        return builder.reshape(value, shape)
    flat = builder.first(builder.reshape(value, (-1,)), plane.size)
    return flat if len(shape) == 1 else builder.reshape(flat, shape)
