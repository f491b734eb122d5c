"""A constant target must do what the computed one does, whatever the sizes, 0 among them."""

import itertools
import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from onnxopt.analysis.expressions import Atom, Expression, number, product, symbol
from onnxopt.analysis.reshape_targets import expand_target, reshape_target
from onnxopt.analysis.symbolic_movement import reshaped
from onnxopt.rewriting import Refuse

ATOMS = [Atom("dim", "a"), Atom("dim", "b"), Atom("element", "u", nonnegative=False)]
A, B, U = map(symbol, ATOMS)


def reshape(shape: Sequence[int], target: Sequence[int], allowzero: bool) -> list[int] | None:
    """The shape that Reshape gives by its specification, None when it fails."""
    result = list(target)
    for axis, size in enumerate(target):
        if size < -1 or (size == 0 and not allowzero and axis >= len(shape)):
            return None
        if size == 0 and not allowzero:
            result[axis] = shape[axis]
    if result.count(-1) > 1:
        return None
    if -1 in result:
        rest = math.prod(size for size in result if size != -1)
        if rest == 0 or math.prod(shape) % rest:
            return None
        result[result.index(-1)] = math.prod(shape) // rest
    return result if math.prod(result) == math.prod(shape) else None


sizes = st.sampled_from([A, B, number(0), number(1), number(2), number(6), A * B, number(2) * A])
elements = st.one_of(sizes, st.sampled_from([number(-1), U, B * number(3)]))


@settings(max_examples=600, deadline=None)
@given(
    st.lists(sizes, max_size=4),
    st.lists(elements, max_size=4),
    st.booleans(),
    st.sampled_from([frozenset[Atom](), frozenset(ATOMS[:1])]),
)
def test_every_run_that_succeeds_gives_the_same_shape(
    source: list[Expression],
    target: list[Expression],
    allowzero: bool,
    nonzero: frozenset[Atom],
) -> None:
    try:
        fixed = reshape_target(tuple(source), target, allowzero, nonzero)
    except Refuse:
        return
    for numbers in itertools.product((0, 1, 2, 3, 6), (0, 1, 2, 5), (-2, -1, 0, 1, 3, 12)):
        values = dict(zip(ATOMS, numbers, strict=True))
        if any(values[atom] == 0 for atom in nonzero):
            continue
        shape = [each.evaluate(values) for each in source]
        before = reshape(shape, [each.evaluate(values) for each in target], allowzero)
        if before is not None:
            assert reshape(shape, fixed, allowzero=False) == before, (fixed, shape)


@settings(max_examples=600, deadline=None)
@given(st.lists(sizes, max_size=4), st.lists(elements, max_size=4), st.booleans())
def test_shapes_of_reshapes_hold_where_at_most_one_size_is_0(
    source: list[Expression], target: list[Expression], allowzero: bool
) -> None:
    claimed = reshaped(tuple(source), target, allowzero)
    for numbers in itertools.product((0, 1, 2, 3, 6), (0, 1, 2, 5), (-2, -1, 0, 1, 3, 12)):
        if numbers[:2] == (0, 0):
            continue
        values = dict(zip(ATOMS, numbers, strict=True))
        shape = [each.evaluate(values) for each in source]
        actual = reshape(shape, [each.evaluate(values) for each in target], allowzero)
        if actual is None:
            continue
        for known, size in zip(claimed, actual, strict=True):
            assert known is None or known.evaluate(values) == size, (shape, actual)


@settings(max_examples=200, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=3), st.data())
def test_regrouped_sizes_with_one_dynamic_group_always_have_a_target(
    source: list[Expression], data: st.DataObject
) -> None:
    fixed = [each for each in source if each.constant is not None and each.constant > 0]
    dynamic = [each for each in source if each.constant is None]
    if len(dynamic) != len(source) - len(fixed) or not dynamic:
        return
    target = data.draw(st.permutations([product(dynamic), *fixed]))
    assert reshape_target(tuple(source), target, False)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([A, number(12)], [A, number(3), number(4)], (0, 3, 4)),
        ([A, B, number(8)], [A, B, number(4), number(2)], (0, 0, 4, 2)),
        ([A, B, number(8)], [A * B, number(8)], (-1, 8)),
        ([A, B, number(8)], [A, number(-1), number(8)], (0, 0, 8)),
        ([A, number(2), number(3)], [A, number(-1)], (0, 6)),
        ([A, B], [A, number(0)], (0, 0)),
        ([A], [U, number(4)], (-1, 4)),
        (None, [U, number(4)], (-1, 4)),
        (None, [number(-1), number(4)], (-1, 4)),
    ],
)
def test_targets(
    source: list[Expression] | None, target: list[Expression], expected: tuple[int, ...]
) -> None:
    shape = None if source is None else tuple(source)
    assert reshape_target(shape, target, allowzero=False) == expected


@pytest.mark.parametrize(
    ("source", "target", "allowzero", "reason"),
    [
        ([A, B], [B, A], False, "more than one"),
        ([A, B, number(6)], [A, B * number(3), number(2)], False, "no other is 0"),
        ([A, number(0)], [number(0), A], True, "size 0"),
        ([A], [number(-2), A], False, "below -1"),
        ([A], [number(-1), number(-1)], False, "two dimensions"),
        (None, [number(0), U], False, "no other is 0"),
    ],
)
def test_no_target(
    source: list[Expression] | None, target: list[Expression], allowzero: bool, reason: str
) -> None:
    with pytest.raises(Refuse, match=reason):
        reshape_target(None if source is None else tuple(source), target, allowzero)


def broadcast(shape: Sequence[int], target: Sequence[int]) -> list[int] | None:
    rank = max(len(shape), len(target))
    padded = [[1] * (rank - len(each)) + list(each) for each in (shape, target)]
    result = []
    for one, other in zip(*padded, strict=True):
        if one != other and 1 not in (one, other):
            return None
        result.append(other if one == 1 else one)
    return result


@settings(max_examples=300, deadline=None)
@given(st.lists(sizes, max_size=3), st.lists(st.one_of(sizes, st.just(U)), max_size=4))
def test_expanding_gives_the_same_shape(source: list[Expression], target: list[Expression]) -> None:
    try:
        fixed = expand_target(tuple(source), target)
    except Refuse:
        return
    for numbers in itertools.product((0, 1, 2, 3), (0, 1, 2), (-1, 0, 2)):
        values = dict(zip(ATOMS, numbers, strict=True))
        shape = [each.evaluate(values) for each in source]
        before = broadcast(shape, [each.evaluate(values) for each in target])
        if before is not None:
            assert broadcast(shape, fixed) == before


def test_no_constant_to_expand_to() -> None:
    with pytest.raises(Refuse, match="only known when the model runs"):
        expand_target((A,), [B, A])
    with pytest.raises(Refuse, match="below 0"):
        expand_target((A,), [number(-1)])
    with pytest.raises(Refuse, match="only known when the model runs"):
        expand_target(None, [A])
