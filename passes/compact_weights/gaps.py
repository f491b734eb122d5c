"""The distance from each stored number to the one before it, in 1 to 8 bits.

Running sums of the distances are the positions. Where a distance does not fit, elements of the
background are stored on the way. Good for many
zeros and for zeros in long runs, and the lightest to decode: there is nothing as long as the tensor
but the tensor.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder
from .packing import store_packed
from .positions import Positions, Sparse

__all__ = ["best_widths", "gaps"]

#: Widths that are unpacked in one piece, which takes fewer nodes.
_WHOLE_WIDTHS = (4, 8)


def best_widths(sparse: Sparse, number_bits: int) -> list[int]:
    """Widths with which the code may be shortest.

    Args:
        sparse: The vector.
        number_bits: Bits that a stored number takes.
    """
    distances = np.diff(sparse.where, prepend=0)

    def bits(width: int) -> int:
        entries = sparse.where.size + int(_stops(distances, width).sum())
        return entries * (width + number_bits)

    return sorted({min(range(1, 9), key=bits), *_WHOLE_WIDTHS})


def gaps(sparse: Sparse, width: int) -> Positions:
    """Tell the positions by distances of so many bits; there must be a number to store."""
    most = (1 << width) - 1
    distances = np.diff(sparse.where, prepend=0)
    stops = _stops(distances, width)
    ends = np.cumsum(stops + 1) - 1
    steps = np.full(int(ends[-1]) + 1, most, np.uint8)
    steps[ends] = distances - stops * most
    stored = np.repeat(sparse.background, steps.size)
    stored[ends] = sparse.flat[sparse.where]

    def expand(builder: DecoderBuilder, numbers: ir.Value) -> ir.Value:
        where = builder.cumulate(store_packed(builder, steps, width))
        return builder.scatter(sparse.flat.size, sparse.background, where, numbers)

    return Positions(f"gaps{width}", stored, expand)


def _stops(distances: Array, width: int) -> Array:
    """How many elements of the background are stored on the way over each distance."""
    stops: Array = np.maximum(distances - 1, 0) // ((1 << width) - 1)
    return stops
