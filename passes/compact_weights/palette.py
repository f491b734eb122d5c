"""Few different numbers: each once, and an index of 1 to 8 bits in place of each element."""

from __future__ import annotations

import numpy as np

from .builder import Array
from .numbers import Numbers, as_bits
from .packing import packed_bytes, store_packed

__all__ = ["MOST_COLOURS", "distinct", "palette"]

#: Indices have up to 8 bits.
MOST_COLOURS = 256
#: Before all elements are sorted, so many are looked at.
_SAMPLE = 4096
#: Bytes of the nodes.
_NODE_BYTES = 120


def palette(numbers: Array, width: int | None = None, *, packed: bool = True) -> Numbers | None:
    """Store a vector as a palette and indices, if it has few enough different numbers.

    Args:
        numbers: The vector.
        width: Bits of an index; as few as do when None.
        packed: Whether indices of less than 8 bits can be unpacked (opset 11).
    """
    found = distinct(numbers)
    if found is None:
        return None
    colours, indices, _ = found
    if width is None:
        width = max(1, (len(colours) - 1).bit_length()) if packed else 8
    size = colours.nbytes + packed_bytes(numbers.size, width) + _NODE_BYTES
    return Numbers(
        "palette",
        size,
        lambda builder, shape: builder.op(
            "Gather", builder.store(colours), store_packed(builder, indices, width, shape)
        ),
    )


def distinct(numbers: Array) -> tuple[Array, Array, Array] | None:
    """The different bit patterns of a vector, or None when they are more than `MOST_COLOURS`.

    Returns:
        The numbers, the index of each element as uint8, and how often each number occurs.
    """
    bits = as_bits(numbers)
    step = max(1, bits.size // _SAMPLE)
    if len(np.unique(bits[::step])) > MOST_COLOURS:
        return None
    if len(np.unique(bits)) > MOST_COLOURS:
        return None
    colours, indices, counts = np.unique(bits, return_inverse=True, return_counts=True)
    return colours.view(numbers.dtype), indices.astype(np.uint8), counts
