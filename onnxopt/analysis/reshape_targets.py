"""Constant shape inputs for Reshape and Expand that do what a computed one does, in every run.

Reshape knows two numbers that are no sizes: 0 stands for the size of the input in the same place
(without ``allowzero``), and one -1 for whatever is left. A runtime works the -1 out by division,
and fails when the other sizes have a 0 among them; a copied 0 is always safe. So a -1 may only
stand in for a dynamic size when no other size can be 0, or when it stood there all along: an empty
batch that went through the model before goes through it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.analysis.expressions import ZERO, Atom, Expression, product
from onnxopt.analysis.nonzero_sizes import nonzero_factors
from onnxopt.analysis.symbolic_values import Shape
from onnxopt.rewriting import Refuse

__all__ = ["expand_target", "reshape_target"]


def reshape_target(
    source: Shape | None,
    target: Sequence[Expression],
    allowzero: bool,
    nonzero: frozenset[Atom] = frozenset(),
) -> tuple[int, ...]:
    """The constant target for a Reshape without ``allowzero``.

    An element of unknown origin may be -1 or 0 when the model runs. As the only one among positive
    numbers it is replaced by -1 all the same: were it 0, the size it copies must be what -1 gives,
    or the run would fail.

    Args:
        source: Shape of the input, None when the rank is unknown.
        target: The computed shape input.
        allowzero: Whether a 0 in the computed target is a size.
        nonzero: Sizes that cannot be 0 anyway.

    Raises:
        Refuse: When no constant does.
    """
    elements = list(target)
    stated = [axis for axis, element in enumerate(elements) if element.constant == -1]
    if len(stated) > 1:
        raise Refuse("the target has two dimensions to be inferred")
    if stated and (others := _divisor(source, elements, stated[0], allowzero)) is not None:
        nonzero |= nonzero_factors(others)
        rest = None if source is None else product(source).quotient(product(others))
        if rest is not None and rest.terms:  # a 0 would be a request to copy
            elements[stated[0]] = rest
    numbers: list[int] = []
    for axis, element in enumerate(elements):
        size = element.constant
        copied = source is not None and axis < len(source) and source[axis] == element
        if size is not None and size > 0:
            numbers.append(size)
        elif copied or (size == 0 and not allowzero):
            numbers.append(0)
        elif size is not None and size != -1:
            raise Refuse("the target has a dimension of size 0 or below -1")
        else:
            numbers.append(-1)
    inferred = [axis for axis, each in enumerate(numbers) if each == -1]
    if len(inferred) > 1:
        raise Refuse("more than one dimension is neither constant nor kept from the input")
    if inferred and inferred != stated and not _may_infer(source, elements, inferred[0], nonzero):
        raise Refuse("a dimension could only be inferred where no other is 0")
    return tuple(numbers)


def _divisor(
    source: Shape | None, elements: Sequence[Expression], inferred: int, allowzero: bool
) -> list[Expression] | None:
    """The sizes beside a -1, of which none is 0 in a run that succeeds; None if one is not known.

    An element that may be 0 and is not the size of the input in its place is not known: it would
    copy another size then.
    """
    sizes: list[Expression] = []
    for axis, element in enumerate(elements):
        if axis == inferred:
            continue
        copied = source is not None and axis < len(source) and source[axis] == element
        if not (allowzero or copied or element.is_nonzero()) or not element.at_least(ZERO):
            return None
        sizes.append(element)
    return sizes


def _may_infer(
    source: Shape | None,
    elements: Sequence[Expression],
    inferred: int,
    nonzero: frozenset[Atom],
) -> bool:
    """Whether the dimensions beside an inferred one are never 0."""
    for axis, element in enumerate(elements):
        if axis == inferred:
            continue
        if element.constant == 0:
            if source is None or axis >= len(source):
                return False
            element = source[axis]
        if not element.is_nonzero(nonzero):
            return False
    return True


def expand_target(source: Shape | None, target: Sequence[Expression]) -> tuple[int, ...]:
    """The constant target for an Expand: 1 where it asks for a size that the input has already.

    Args:
        source: Shape of the input, None when the rank is unknown.
        target: The computed shape input.

    Raises:
        Refuse: When no constant does.
    """
    numbers: list[int] = []
    for position, element in enumerate(reversed(target)):
        size = element.constant
        own = source is not None and position < len(source) and source[-1 - position] == element
        if size is None and not own:
            raise Refuse("a dimension to expand to is only known when the model runs")
        if size is not None and size < 0:
            raise Refuse("a dimension to expand to is below 0")
        numbers.append(1 if own else size or 0)
    return tuple(reversed(numbers))
