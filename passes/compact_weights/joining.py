"""Several small tensors stored as one, so that they share the nodes of a decoder.

A decoder takes some hundred bytes, which is much for a tensor of a few thousand. The elements of
small sparse tensors are put one after another and coded as one vector; ``Split`` and ``Reshape``
give each tensor what is its own. That makes two more copies while the model is loaded, so only so
much is stored together that nobody notices.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from .builder import Decoder, DecoderBuilder
from .choice import PACKED_OPSET, Code, sparse_forms, sparse_vector
from .numbers import Numbers
from .positions import Positions
from .scaled import Scaled, scaled

__all__ = ["groups", "joint_decoders"]


def groups(values: Sequence[ir.Value], most_bytes: int) -> list[tuple[ir.Value, ...]]:
    """Initializers that may be stored together: the smallest, each group of one kind.

    Those of a group are in one graph, of one type, and half and more of each is the same element.

    Args:
        values: Initializers.
        most_bytes: How many bytes may be stored together in all, as they are when decoded.
    """

    by_size = sorted(values, key=_nbytes)
    sums = itertools.accumulate(map(_nbytes, by_size))
    small = {value for value, total in zip(by_size, sums, strict=True) if total <= most_bytes}
    alike: dict[Hashable, list[ir.Value]] = {}
    for value in values:
        if value in small and (kind := _kind(value)) is not None:
            alike.setdefault(kind, []).append(value)
    return [tuple(group) for group in alike.values()]


def _kind(value: ir.Value) -> Hashable:
    """What tensors that are stored together have in common; None for one that is not sparse."""
    assert value.const_value is not None
    flat = np.ascontiguousarray(value.const_value.numpy()).reshape(-1)
    sparse = sparse_vector(flat)
    if sparse.where.size * 2 > flat.size:
        return None
    return id(value.graph), flat.dtype, sparse.background.tobytes()


def joint_decoders(
    values: Sequence[ir.Value],
    number: int,
    opset: int,
    codes: Collection[Code],
    present: Collection[Hashable],
) -> list[Decoder]:
    """Decoders that make all of some tensors of one type, the shortest first.

    Args:
        values: Initializers.
        number: Tells the decoders of a model apart.
        opset: Version of the standard domain.
        codes: Codes that may be used.
        present: Keys of shared constants that the model has already.
    """
    if opset < PACKED_OPSET:
        return []
    tensors = [value.const_value for value in values]
    arrays = [np.ascontiguousarray(each.numpy()) for each in tensors if each is not None]
    factors = [scaled(array) for array in arrays] if "scaled" in codes else []
    found = list(_ways([array.shape for array in arrays], arrays, None, number, opset, codes))
    if factors and all(factors):
        known = [each for each in factors if each is not None]
        integers = [each.integers for each in known]
        found += _ways([array.shape for array in arrays], integers, known, number, opset, codes)
    return sorted(found, key=lambda each: each.nbytes(present))


def _ways(
    shapes: Sequence[tuple[int, ...]],
    arrays: Sequence[np.ndarray],
    factors: Sequence[Scaled] | None,
    number: int,
    opset: int,
    codes: Collection[Code],
) -> Iterator[Decoder]:
    sparse = sparse_vector(np.concatenate([array.reshape(-1) for array in arrays]))
    for positions, numbers in sparse_forms(sparse, codes, opset):
        yield _combine(DecoderBuilder(number), positions, numbers, shapes, factors, opset)


def _combine(
    builder: DecoderBuilder,
    positions: Positions,
    numbers: Numbers,
    shapes: Sequence[tuple[int, ...]],
    factors: Sequence[Scaled] | None,
    opset: int,
) -> Decoder:
    flat = positions.expand(builder, numbers.write(builder, (positions.stored.size,)))
    if factors is not None:
        flat = builder.op("Cast", flat, to=ir.DataType.FLOAT)
    pieces = builder.split(flat, [int(np.prod(shape)) for shape in shapes], opset)
    outputs = [builder.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]
    if factors is not None:
        outputs = [
            builder.op("Mul", output, builder.store(each.scales))
            for output, each in zip(outputs, factors, strict=True)
        ]
    parts = (positions.code, numbers.code, "scaled" if factors else "", "joined")
    return builder.finish("+".join(filter(None, parts)), *outputs)


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.nbytes)
