"""The codes that make a tensor smaller, the best first."""

from __future__ import annotations

import dataclasses
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

__all__ = [
    "ALL_CODES",
    "CODES",
    "PACKED_OPSET",
    "Code",
    "Offer",
    "combine",
    "dense_bytes",
    "offers",
    "ranked",
    "sparse_forms",
    "sparse_vector",
]

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
PACKED_OPSET = 11
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


@dataclasses.dataclass(frozen=True)
class Offer:
    """What one decoder of an initializer costs.

    Attributes:
        nbytes: Bytes in the model file.
        memory: Bytes of everything that it makes while the runtime loads the model.
        decoder: The decoder; None for the initializer as it is.
    """

    nbytes: int
    memory: int
    decoder: Decoder | None = None


def offers(
    value: ir.Value,
    number: int,
    opset: int,
    ir_version: int,
    codes: Collection[Code],
    max_memory: float,
    present: Collection[Hashable],
) -> list[Offer]:
    """The initializer as it is, and all decoders that take less room.

    Args:
        value: The initializer.
        number: Tells the decoders of a model apart.
        opset: Version of the standard domain.
        ir_version: IR version of the model.
        codes: Codes that may be used.
        max_memory: How many times the bytes of the initializer a decoder may make; 0 for no limit.
        present: Keys of shared constants that the model has already.
    """
    tensor = value.const_value
    assert tensor is not None
    dense = Offer(dense_bytes(value), 0)
    if not 0 < tensor.size < _MOST_ELEMENTS:
        return [dense]
    array = np.ascontiguousarray(tensor.numpy())
    shape = tuple(int(size) for size in tensor.shape.numpy())
    ways = list(_ways(array.reshape(-1), shape, number, opset, codes))
    if "scaled" in codes and opset >= _CONSTANT_OPSET and (found := scaled(array.reshape(shape))):
        ways.extend(_ways(found.integers.reshape(-1), shape, number, opset, codes, found))
    found_offers = [dense]
    for decoder in ways:
        nbytes = decoder.nbytes(present)
        if nbytes < dense.nbytes:
            memory = temporary_bytes(decoder, opset, ir_version)
            if not max_memory or memory <= max_memory * array.nbytes:
                found_offers.append(Offer(nbytes, memory, decoder))
    return found_offers


def ranked(choices: Sequence[Offer], slack: float) -> list[Offer]:
    """Offers, the best first, up to the initializer as it is.

    The best are those about as short as the shortest, by the memory that they need; then the others
    by their length.

    Args:
        choices: The offers.
        slack: By how much of its length one is about as short as the shortest.
    """
    by_length = sorted(choices, key=lambda each: each.nbytes)
    most = by_length[0].nbytes * (1 + slack)
    near = [each for each in by_length if each.nbytes <= most]
    near.sort(key=lambda each: each.memory)
    order = [*near, *(each for each in by_length if each.nbytes > most)]
    return order[: 1 + next(place for place, each in enumerate(order) if each.decoder is None)]


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
    sparse = sparse_vector(flat)
    empty = sparse.where.size == 0
    if empty and "constant" in codes and opset >= _CONSTANT_OPSET and factors is None:
        builder = DecoderBuilder(number)
        yield builder.finish("constant", builder.filled(shape, sparse.background))
    numbers = _best_numbers(flat, codes, opset)
    if numbers.code or factors is not None:
        yield combine(DecoderBuilder(number), None, numbers, shape, factors)
    if opset < PACKED_OPSET:
        return
    if "palettes" in codes and (grouped := palettes(flat, shape)):
        yield combine(DecoderBuilder(number), None, grouped, shape, factors)
    for positions, numbers in sparse_forms(sparse, codes, opset):
        yield combine(DecoderBuilder(number), positions, numbers, shape, factors)


def sparse_forms(
    sparse: Sparse, codes: Collection[Code], opset: int
) -> Iterator[tuple[Positions, Numbers]]:
    """Codes for the positions of a sparse vector, each with that for the numbers it stores."""
    number_bits = max(1, 8 * _best_numbers(sparse.flat, codes, opset).nbytes // sparse.flat.size)
    for positions in _positions(sparse, codes, number_bits):
        yield positions, _best_numbers(positions.stored, codes, opset)


def sparse_vector(flat: Array) -> Sparse:
    """A vector and where it differs from its most frequent element."""
    background = _most_frequent(flat)
    return Sparse(flat, background, np.flatnonzero(as_bits(flat) != as_bits(background)))


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
        indexed = palette(numbers, packed=opset >= PACKED_OPSET)
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
