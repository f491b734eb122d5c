"""A bit for each element, and the numbers where it is set.

The number behind the i-th set bit is found by counting: running sums of the bits, times the bits,
are indices into the stored numbers, where the background comes first. One bit an element, whatever
the sparsity.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import DecoderBuilder
from .packing import store_packed
from .positions import Positions, Sparse

__all__ = ["bitmask"]


def bitmask(sparse: Sparse) -> Positions:
    """Tell the positions by a bit for each element."""
    bits = np.zeros(sparse.flat.size, np.uint8)
    bits[sparse.where] = 1
    stored = np.concatenate([sparse.background, sparse.flat[sparse.where]])

    def expand(builder: DecoderBuilder, numbers: ir.Value) -> ir.Value:
        mask = store_packed(builder, bits, 1)
        rank = builder.cumulate(mask)
        return builder.op("Gather", numbers, builder.op("Mul", rank, mask))

    return Positions("bitmask", stored, expand)
