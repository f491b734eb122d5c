"""Few different numbers: each once, and an index of 1 to 8 bits in place of each element.

`palette` has one palette for all elements, `palettes` one for each group of neighbouring channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder
from .numbers import Numbers, as_bits
from .packing import packed_bytes, store_packed

__all__ = ["MOST_COLOURS", "distinct", "palette", "palettes"]

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


def palettes(numbers: Array, shape: Sequence[int]) -> Numbers | None:
    """Store a tensor as a palette for each group of channels, if that is shorter than one for all.

    Channels are those of the first or the last axis, and neighbours share a palette. The decoder
    adds to each index where its group's palette begins.

    Args:
        numbers: The elements, as a vector.
        shape: Shape of the tensor.
    """
    limit = numbers.nbytes
    if (plain := palette(numbers)) is not None:
        limit = min(limit, plain.nbytes)
    ways = [way for axis in {0, len(shape) - 1} for way in _grouped(numbers, shape, axis)]
    best = min(ways, key=lambda way: way.nbytes, default=None)
    return best if best is not None and best.nbytes < limit else None


def _grouped(numbers: Array, shape: Sequence[int], axis: int) -> Iterator[Numbers]:
    """Palettes for groups of 1, 2, 4, ... channels of an axis, as long as their colours are few."""
    if len(shape) < 2:
        return
    channels = shape[axis]
    rows = np.moveaxis(as_bits(numbers).reshape(shape), axis, 0)
    size = 1
    while size < channels:
        first = rows[:size].reshape(-1)
        few = min(MOST_COLOURS, first.size // 2)
        if len(np.unique(first[: 2 * MOST_COLOURS])) > few or len(np.unique(first)) > few:
            return
        groups = [rows[start : start + size] for start in range(0, channels, size)]
        found = [np.unique(group, return_inverse=True) for group in groups]
        most = max(len(colours) for colours, _ in found)
        if most > MOST_COLOURS:
            return
        yield _written(numbers, shape, axis, size, found)
        size *= 2


def _written(
    numbers: Array,
    shape: Sequence[int],
    axis: int,
    size: int,
    found: Sequence[tuple[Array, Array]],
) -> Numbers:
    """The code with these colours, and indices, of each group of `size` channels."""
    counts = np.array([len(colours) for colours, _ in found])
    width = max(1, int(counts.max() - 1).bit_length())
    colours = np.concatenate([each for each, _ in found]).view(numbers.dtype)
    moved = [shape[axis], *(each for place, each in enumerate(shape) if place != axis)]
    rows = np.concatenate([each.reshape(-1) for _, each in found]).astype(np.uint8)
    indices = np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis)).reshape(-1)
    starts = np.repeat(np.cumsum(counts) - counts, size)[: shape[axis]].astype(np.int32)
    starts = starts.reshape([-1 if place == axis else 1 for place in range(len(shape))])

    def write(builder: DecoderBuilder, wanted: Sequence[int]) -> ir.Value:
        own = store_packed(builder, indices, width, wanted)
        return builder.op(
            "Gather", builder.store(colours), builder.op("Add", own, builder.store(starts))
        )

    nbytes = colours.nbytes + starts.nbytes + packed_bytes(numbers.size, width)
    return Numbers("palettes", nbytes + _NODE_BYTES, write)
