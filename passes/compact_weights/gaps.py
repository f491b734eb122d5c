"""The distance from each stored number to the one before it, in 1 to 8 bits.

Running sums of the distances are the positions. Good for many zeros and for zeros in long runs, and
the lightest to decode: there is nothing as long as the tensor but the tensor.

Where a distance does not fit there are two ways. Elements of the background can be stored on the
way, which takes no more nodes. Or the long distances are listed, at a byte for the distance and one
for where it belongs, and put in their places before the sum; that is shorter where numbers are
long.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder
from .packing import store_packed
from .positions import Positions, Sparse

__all__ = ["best_listed_width", "best_widths", "gaps", "listed_gaps"]

#: Widths that are unpacked in one piece, which takes fewer nodes.
_WHOLE_WIDTHS = (4, 8)
_BYTE = 255
#: Bits of a long distance in the list, with its place.
_LISTED_BITS = 16


def best_widths(sparse: Sparse, number_bits: int) -> list[int]:
    """Widths with which the code without a list may be shortest.

    Args:
        sparse: The vector.
        number_bits: Bits that a stored number takes.
    """
    distances = np.diff(sparse.where, prepend=0)

    def bits(width: int) -> int:
        entries = sparse.where.size + int(_stops(distances, (1 << width) - 1).sum())
        return entries * (width + number_bits)

    return sorted({min(range(1, 9), key=bits), *_WHOLE_WIDTHS})


def best_listed_width(sparse: Sparse) -> int:
    """The width below 8 with which the code with a list is shortest."""
    distances = np.diff(sparse.where, prepend=0)

    def bits(width: int) -> int:
        return distances.size * width + int((distances >> width > 0).sum()) * _LISTED_BITS

    return min(range(1, 8), key=bits)


def gaps(sparse: Sparse, width: int) -> Positions:
    """Tell the positions by distances of so many bits; there must be a number to store."""
    steps, stored = _with_stops(sparse, (1 << width) - 1)

    def expand(builder: DecoderBuilder, numbers: ir.Value) -> ir.Value:
        where = builder.cumulate(store_packed(builder, steps, width))
        return builder.scatter(sparse.flat.size, sparse.background, where, numbers)

    return Positions(f"gaps{width}", stored, expand)


def listed_gaps(sparse: Sparse, width: int) -> Positions:
    """Tell the positions by distances of so many bits, below 8, and a list of the longer ones."""
    steps, stored = _with_stops(sparse, _BYTE)
    most = (1 << width) - 1
    # No two places in the list are further apart than a byte can tell.
    listed = steps > most
    last = 0
    for place in (*np.flatnonzero(listed), steps.size):
        listed[last + _BYTE : place : _BYTE] = True
        last = int(place)
    listed[0] = True
    places = np.flatnonzero(listed)
    long, apart = steps[places], np.diff(places, prepend=0).astype(np.uint8)

    def expand(builder: DecoderBuilder, numbers: ir.Value) -> ir.Value:
        short = store_packed(builder, np.minimum(steps, most), width)
        at = builder.cumulate(store_packed(builder, apart, 8))
        replaced = store_packed(builder, long, 8)
        where = builder.cumulate(builder.op("ScatterElements", short, at, replaced, axis=0))
        return builder.scatter(sparse.flat.size, sparse.background, where, numbers)

    return Positions(f"gaps{width}", stored, expand)


def _with_stops(sparse: Sparse, most: int) -> tuple[Array, Array]:
    """Distances up to a limit as uint8, and the numbers, with background where it was too far."""
    distances = np.diff(sparse.where, prepend=0)
    stops = _stops(distances, most)
    ends = np.cumsum(stops + 1) - 1
    steps = np.full(int(ends[-1]) + 1, most, np.uint8)
    steps[ends] = distances - stops * most
    stored = np.repeat(sparse.background, steps.size)
    stored[ends] = sparse.flat[sparse.where]
    return steps, stored


def _stops(distances: Array, most: int) -> Array:
    """How many elements of the background are stored on the way over each distance."""
    stops: Array = np.maximum(distances - 1, 0) // most
    return stops
