"""The distance from each stored number to the one before it, in 4 or 8 bits.

Running sums of the distances are the positions. Where a distance does not fit, elements of the
background are stored on the way. Good for many zeros and for zeros in long runs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import DecoderBuilder
from .packing import store_packed
from .positions import Positions, Sparse

__all__ = ["gaps"]


def gaps(sparse: Sparse, width: int) -> Positions:
    """Tell the positions by distances of so many bits; there must be a number to store."""
    most = (1 << width) - 1
    distances = np.diff(sparse.where, prepend=0)
    stops = np.maximum(distances - 1, 0) // most  # elements of the background on the way to each
    ends = np.cumsum(stops + 1) - 1
    steps = np.full(int(ends[-1]) + 1, most, np.uint8)
    steps[ends] = distances - stops * most
    stored = np.repeat(sparse.background, steps.size)
    stored[ends] = sparse.flat[sparse.where]

    def expand(builder: DecoderBuilder, numbers: ir.Value) -> ir.Value:
        where = builder.cumulate(store_packed(builder, steps, width))
        return builder.scatter(sparse.flat.size, sparse.background, where, numbers)

    return Positions(f"gaps{width}", stored, expand)
