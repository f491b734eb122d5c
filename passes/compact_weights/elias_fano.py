"""The positions of the stored numbers as an Elias-Fano code (P. Elias, JACM 21, 1974).

Each position is split into its lowest l bits, which are stored as they are, and the rest, which
never decreases: it is written in unary, a set bit for each number after as many clear bits as the
rest has grown. That takes l + 1 bits a number and one bit for every 2**l elements, within half a
bit a number of what is possible for independent zeros.

To find the rest of the i-th position, the number of clear bits before the i-th set bit has to be
known. Running sums count both kinds of bits; a scatter moves the count of clear bits from each set
bit to the number it belongs to, and from the clear bits to a slot that is dropped.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import DecoderBuilder
from .packing import packed_bytes, store_packed
from .positions import Positions, Sparse

__all__ = ["MOST_LOW_BITS", "best_low_bits", "elias_fano"]

MOST_LOW_BITS = 8
#: Bytes of the nodes that add one more packed part of the low bits.
_PART_BYTES = 150


def best_low_bits(sparse: Sparse) -> int:
    """The number of low bits with which the code is shortest."""
    count, size = sparse.where.size, sparse.flat.size

    def nbytes(low: int) -> int:
        parts = 1 if low == MOST_LOW_BITS else low.bit_count()
        return packed_bytes(count, low) + (count + (size >> low)) // 8 + parts * _PART_BYTES

    return min(range(MOST_LOW_BITS + 1), key=nbytes)


def elias_fano(sparse: Sparse, low_bits: int) -> Positions:
    """Tell the positions by an Elias-Fano code; there must be a number to store."""
    count = sparse.where.size
    rest = sparse.where >> low_bits
    unary = np.zeros(-(-(int(rest[-1]) + count) // 8) * 8, np.uint8)
    unary[rest + np.arange(count)] = 1
    low = (sparse.where & ((1 << low_bits) - 1)).astype(np.uint8)

    def expand(builder: DecoderBuilder, numbers: ir.Value) -> ir.Value:
        ones = store_packed(builder, unary, 1)
        rank = builder.cumulate(ones)
        zeros = builder.cumulate(builder.op("Sub", builder.share(np.array(1, np.int32)), ones))
        slots = builder.filled((count + 1,), np.zeros(1, np.int32))
        slot = builder.op("Mul", rank, ones)
        counts = builder.op("ScatterElements", slots, slot, zeros, axis=0)
        start, end = (np.array([index], np.int64) for index in (1, count + 1))
        where = builder.op("Slice", counts, builder.share(start), builder.share(end))
        if low_bits:
            scale = builder.share(np.array(1 << low_bits, np.int32))
            high = builder.op("Mul", where, scale)
            where = builder.op("Add", high, store_packed(builder, low, low_bits))
        return builder.scatter(sparse.flat.size, sparse.background, where, numbers)

    return Positions("elias-fano", sparse.flat[sparse.where], expand)
