"""What symbolic facts are made of: shapes, contents of integer tensors, and questions for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import onnx_ir as ir

from onnxopt.analysis.expressions import ONE, Expression

__all__ = [
    "FAR",
    "INTEGER_TYPES",
    "MOST_ELEMENTS",
    "Dims",
    "Integers",
    "Questions",
    "Shape",
    "ShapeRule",
    "broadcast",
]

#: The shape of a value.
Shape = tuple[Expression, ...]
#: A shape as far as it is known.
Dims = Sequence[Expression | None]

#: Ends of slices from here on mean "to the end".
FAR = 2**31 - 1
#: Longer vectors are no shapes.
MOST_ELEMENTS = 64
#: The element types whose contents are followed; booleans count as 0 and 1.
INTEGER_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclasses.dataclass(frozen=True)
class Integers:
    """The contents of an integer tensor of rank 0 or 1.

    Attributes:
        elements: One expression an element.
        is_scalar: Whether the rank is 0; there is one element then.
        dtype: One of `INTEGER_TYPES`.
    """

    elements: tuple[Expression, ...]
    is_scalar: bool
    dtype: ir.DataType

    @property
    def constants(self) -> tuple[int, ...] | None:
        """The numbers, when all of them are known."""
        known = [element.constant for element in self.elements]
        numbers = tuple(each for each in known if each is not None)
        return numbers if len(numbers) == len(known) else None

    @classmethod
    def vector(cls, elements: Iterable[Expression], dtype: ir.DataType) -> Integers:
        """A tensor of rank 1."""
        return cls(tuple(elements), False, dtype)

    @classmethod
    def scalar(cls, element: Expression, dtype: ir.DataType) -> Integers:
        """A tensor of rank 0."""
        return cls((element,), True, dtype)


class Questions(Protocol):
    """What the rule of an operator may ask about the operator's inputs."""

    def integers(self, *values: ir.Value | None) -> list[Integers | None]:
        """Contents of several values; None for what is missing or not known."""

    def shapes(self, *values: ir.Value | None) -> list[Shape | None]:
        """Shapes of several values; None for what is missing or of unknown rank."""


#: The shape of an output of a node; its place among the outputs is given.
ShapeRule = Callable[[ir.Node, int, Questions], Dims | None]


def broadcast(first: Dims, second: Dims) -> list[Expression | None]:
    """The shape that two tensors broadcast to, where that is certain."""
    length = max(len(first), len(second))
    left, right = ((*[ONE] * (length - len(each)), *each) for each in (first, second))
    return [_broadcast_dim(one, other) for one, other in zip(left, right, strict=True)]


def _broadcast_dim(one: Expression | None, other: Expression | None) -> Expression | None:
    if one == other or other == ONE:
        return one
    if one == ONE:
        return other
    for each in (one, other):  # the other side is 1 or the same, since the run does not fail
        if each is not None and (each - ONE).is_nonzero():
            return each
    return None
