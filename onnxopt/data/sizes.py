"""Sizes for the dimensions that neither the model nor the user fixes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxopt.data.request import FeedRequest, open_axes

__all__ = ["Plan", "fixed_symbols", "make_shape", "plans"]

#: Pairs of sizes to try for dimensions that are neither fixed nor the first, smallest first.
_SIZE_PAIRS = ((16, 24), (64, 96), (1, 2), (224, 256), (512, 576), (8, 8), (32, 48), (1024, 1536))
#: At most so many dimensions after the first are taken for the batch.
_MOST_BATCH_SLOTS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of open dimensions: ``batch`` for the first of an input and for ``like_batch``."""

    size: int
    batch: int
    like_batch: frozenset[str]


def plans(
    inputs: Sequence[ir.Value], request: FeedRequest
) -> Iterator[tuple[tuple[int, int], frozenset[str]]]:
    """Pairs of sizes, and the open dimensions that are the batch too, likely ones first.

    Recurrent states have their batch in the middle, and no name says so; hence the combinations.
    """
    slots = list(
        dict.fromkeys(
            _slot(value, axis) for value in inputs for axis in open_axes(value, request) if axis > 0
        )
    )
    if not slots:
        yield (1, 1), frozenset()
        return
    for count in range(min(len(slots), _MOST_BATCH_SLOTS) + 1):
        pairs = _SIZE_PAIRS if count < len(slots) else _SIZE_PAIRS[:1]  # nothing left to size
        for chosen in itertools.combinations(slots, count):
            for sizes in pairs:
                yield sizes, frozenset(chosen)


def _slot(value: ir.Value, axis: int) -> str:
    """Dimensions of one name have one size; a dimension without a name stands for itself."""
    dim = value.shape[axis] if value.shape is not None else 0
    symbol = None if isinstance(dim, int) else dim.value
    return symbol if symbol is not None else f"{value.name} axis {axis}"


def fixed_symbols(inputs: Sequence[ir.Value], request: FeedRequest) -> dict[str, int]:
    """Sizes by symbol: one that the user fixed in one input has that size in all."""
    symbols: dict[str, int] = {}
    for value in inputs:
        name = value.name or ""
        if value.shape is None:
            continue
        given = request.shapes.get(name)
        if given is None and name in request.values:
            given = request.values[name].shape
        if given is not None and len(given) == len(value.shape):
            for dim, number in zip(value.shape, given, strict=True):
                if not isinstance(dim, int) and dim.value is not None and number >= 0:
                    symbols[dim.value] = int(number)
    return symbols


def make_shape(
    value: ir.Value, given: tuple[int, ...] | None, symbols: dict[str, int], plan: Plan
) -> tuple[int, ...]:
    """The shape to make an input of.

    Args:
        value: The input.
        given: What the user said of its shape, -1 for an open dimension.
        symbols: Sizes chosen so far, by the slot of the dimension; added to.
        plan: Sizes for dimensions that have none yet.
    """
    if value.shape is None:
        return given if given is not None else (plan.batch,)
    shape: list[int] = []
    for axis, dim in enumerate(value.shape):
        chosen = given[axis] if given is not None else -1
        if chosen < 0 and isinstance(dim, int) and dim >= 0:
            chosen = dim
        elif chosen < 0:  # exporters write -1, too, for a size that is not fixed
            slot = _slot(value, axis)
            is_batch = axis == 0 or slot in plan.like_batch
            chosen = symbols.setdefault(slot, plan.batch if is_batch else plan.size)
        shape.append(chosen)
    return tuple(shape)
