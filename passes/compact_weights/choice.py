"""The codes that make a tensor smaller, the best first."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from .bitmask import bitmask
from .builder import Array, Decoder, DecoderBuilder, initializer_bytes
from .elias_fano import best_low_bits, elias_fano
from .evaluation import temporary_bytes
from .gaps import best_listed_width, best_widths, gaps, listed_gaps
from .narrow import narrow
from .numbers import Numbers, as_bits, as_they_are
from .palette import distinct, palette, palettes
from .positions import Positions, Sparse
from .scaled import Scaled, scaled

__all__ = ["ALL_CODES", "CODES", "Code", "combine", "dense_bytes", "shorter_decoders"]

Code = Literal[
    "constant",
    "narrow",
    "palette",
    "palettes",
    "scaled",
    "bitmask",
    "gaps",
    "elias-fano",
    "sparse-initializer",
]
#: What there is.
ALL_CODES: tuple[Code, ...] = get_args(Code)
#: What is used unless asked otherwise: all but what many tools cannot read.
CODES: tuple[Code, ...] = tuple(code for code in ALL_CODES if code != "sparse-initializer")

#: The first opset in which there are all operators of the packed codes: BitShift, CumSum,
#: ScatterElements.
_PACKED_OPSET = 11
#: The first opset with ConstantOfShape.
_CONSTANT_OPSET = 9
#: Positions are computed in int32.
_MOST_ELEMENTS = 2**31 - 2**10
#: By so much one code may be longer than another and the file shorter, since its nodes are fewer.
_NODES_BITS = 1 << 13
#: By so much gaps may be longer than a bitmask and still be tried.
_NOT_MUCH = 1.1
#: With more numbers than this share, gaps are not lighter than a bitmask.
_FEW = 0.6
#: How many elements are looked at for the most frequent one, where there are many different ones.
_SAMPLE = 4096


def shorter_decoders(
    value: ir.Value,
    number: int,
    opset: int,
    ir_version: int,
    codes: Collection[Code],
    slack: float,
    max_memory: float,
    present: Collection[Hashable],
) -> list[Decoder]:
    """Decoders of an initializer that take less room than the initializer, the best first.

    The best are those about as short as the shortest, by the memory that they need; then the others
    by their length.

    Args:
        value: The initializer.
        number: Tells the decoders of a model apart.
        opset: Version of the standard domain.
        ir_version: IR version of the model.
        codes: Codes that may be used.
        slack: By how much of its length one is about as short as the shortest.
        max_memory: How many times the bytes of the initializer a decoder may make; 0 for no limit.
        present: Keys of shared constants that the model has already.
    """
    tensor = value.const_value
    assert tensor is not None
    array = np.ascontiguousarray(tensor.numpy())
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if not 0 < array.size < _MOST_ELEMENTS:
        return []
    limit = dense_bytes(value)
    ways = list(_ways(array.reshape(-1), shape, number, opset, codes))
    if "scaled" in codes and opset >= _CONSTANT_OPSET and (found := scaled(array.reshape(shape))):
        ways.extend(_ways(found.integers.reshape(-1), shape, number, opset, codes, found))
    sizes = {decoder: decoder.nbytes(present) for decoder in ways}
    shorter = sorted((each for each in sizes if sizes[each] < limit), key=sizes.__getitem__)
    if max_memory:
        limit = int(max_memory * array.nbytes)
        memory = {each: temporary_bytes(each, opset, ir_version) for each in shorter}
        shorter = [each for each in shorter if memory[each] <= limit]
    near = [each for each in shorter if sizes[each] <= sizes[shorter[0]] * (1 + slack)]
    if len(near) > 1:
        near.sort(key=lambda each: temporary_bytes(each, opset, ir_version))
    return [*near, *(each for each in shorter if each not in near)]


def dense_bytes(value: ir.Value) -> int:
    """Bytes of an initializer in a model file."""
    tensor = value.const_value
    assert tensor is not None
    shape = tensor.shape.numpy()
    return initializer_bytes(value.name or "", tensor.dtype, shape, int(tensor.nbytes))


def combine(
    builder: DecoderBuilder,
    positions: Positions | None,
    numbers: Numbers,
    shape: Sequence[int],
    factors: Scaled | None = None,
) -> Decoder:
    """The decoder of a code for positions (all of them when None) and one for numbers.

    Args:
        builder: A new one.
        positions: Where the numbers stand.
        numbers: How they are written.
        shape: Shape of the tensor.
        factors: What the numbers are multiplied by in the end, if they are integers of these.
    """
    if positions is None:
        output = numbers.write(builder, shape)
    else:
        output = positions.expand(builder, numbers.write(builder, (positions.stored.size,)))
        if len(shape) != 1:
            output = builder.reshape(output, shape)
    if factors is not None:
        output = factors.multiplied(builder, output)
    parts = (positions.code if positions else "", numbers.code, "scaled" if factors else "")
    return builder.finish("+".join(filter(None, parts)), output)


def _ways(
    flat: Array,
    shape: Sequence[int],
    number: int,
    opset: int,
    codes: Collection[Code],
    factors: Scaled | None = None,
) -> Iterator[Decoder]:
    background = _most_frequent(flat)
    where = np.flatnonzero(as_bits(flat) != as_bits(background))
    sparse = Sparse(flat, background, where)
    if where.size == 0 and "constant" in codes and opset >= _CONSTANT_OPSET and factors is None:
        builder = DecoderBuilder(number)
        yield builder.finish("constant", builder.filled(shape, background))
    numbers = _best_numbers(flat, codes, opset)
    if numbers.code or factors is not None:
        yield combine(DecoderBuilder(number), None, numbers, shape, factors)
    if opset < _PACKED_OPSET:
        return
    if "palettes" in codes and (grouped := palettes(flat, shape)):
        yield combine(DecoderBuilder(number), None, grouped, shape, factors)
    number_bits = max(1, 8 * numbers.nbytes // flat.size)
    for positions in _positions(sparse, codes, number_bits):
        numbers = _best_numbers(positions.stored, codes, opset)
        yield combine(DecoderBuilder(number), positions, numbers, shape, factors)


def _positions(sparse: Sparse, codes: Collection[Code], number_bits: int) -> Iterator[Positions]:
    """Codes for the positions, but those that cannot be the shortest in a large tensor."""
    size, count = sparse.flat.size, sparse.where.size
    if (size - count) * sparse.flat.itemsize * 8 <= size:
        return  # a bit for each element is more than what is left out
    if "bitmask" in codes:
        yield bitmask(sparse)
    if count == 0:
        return
    if "gaps" in codes:
        # Lighter to load than a bit for each element, so tried where they are not much longer.
        mask_bits = size + count * number_bits
        for width in best_widths(sparse, number_bits):
            allowed = mask_bits * (_NOT_MUCH if count < size * _FEW else 1.0)
            if count * (width + number_bits) < allowed + _NODES_BITS:
                yield gaps(sparse, width)
        width = best_listed_width(sparse)
        if count * (width + number_bits) < mask_bits:
            yield listed_gaps(sparse, width)
    if "elias-fano" in codes and count < size // 2 + _NODES_BITS:
        yield elias_fano(sparse, best_low_bits(sparse))


def _best_numbers(numbers: Array, codes: Collection[Code], opset: int) -> Numbers:
    ways = [as_they_are(numbers)]
    if "narrow" in codes and opset >= _CONSTANT_OPSET and (narrowed := narrow(numbers)):
        ways.append(narrowed)
    if "palette" in codes:
        indexed = palette(numbers, packed=opset >= _PACKED_OPSET)
        if indexed is not None:
            ways.append(indexed)
    return min(ways, key=lambda way: way.nbytes)


def _most_frequent(flat: Array) -> Array:
    """The most frequent element, as a vector of one; of many different ones, in a sample."""
    found = distinct(flat)
    if found is None:
        bits, counts = np.unique(as_bits(flat)[:: max(1, flat.size // _SAMPLE)], return_counts=True)
        colours = bits.view(flat.dtype)
    else:
        colours, _, counts = found
    index = int(np.argmax(counts))
    return colours[index : index + 1]
