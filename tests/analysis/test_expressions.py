"""Polynomials must agree with the integers they stand for, whatever the sizes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from onnxopt.analysis.expressions import ONE, ZERO, Atom, Expression, number, product, symbol

ATOMS = [Atom("dim", "a"), Atom("dim", "b"), Atom("element", "c", nonnegative=False)]
A, B, C = map(symbol, ATOMS)

expressions = st.recursive(
    st.one_of(st.integers(-5, 5).map(number), st.sampled_from([A, B, C])),
    lambda inner: st.tuples(
        st.sampled_from([Expression.__add__, Expression.__sub__, Expression.__mul__]), inner, inner
    ).map(lambda parts: parts[0](parts[1], parts[2])),
    max_leaves=6,
)
assignments = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(-9, 9)).map(
    lambda numbers: dict(zip(ATOMS, numbers, strict=True))
)
quick = settings(max_examples=150, deadline=None)


@quick
@given(expressions, expressions, assignments)
def test_arithmetic_is_that_of_integers(
    one: Expression, other: Expression, values: dict[Atom, int]
) -> None:
    left, right = one.evaluate(values), other.evaluate(values)
    assert (one + other).evaluate(values) == left + right
    assert (one - other).evaluate(values) == left - right
    assert (one * other).evaluate(values) == left * right
    assert (-one).evaluate(values) == -left


@quick
@given(expressions, expressions, expressions)
def test_normal_form_is_one(one: Expression, two: Expression, three: Expression) -> None:
    assert (one + two) * three == three * two + three * one
    assert hash((one + two) - two) == hash(one)
    assert one - one == ZERO


@quick
@given(expressions, expressions)
def test_quotient_undoes_a_product(one: Expression, other: Expression) -> None:
    if other != ZERO:
        assert (one * other).quotient(other) == one


@quick
@given(expressions, expressions, assignments)
def test_quotient_is_exact_or_none(
    one: Expression, other: Expression, values: dict[Atom, int]
) -> None:
    quotient = one.quotient(other)
    if quotient is not None:
        assert quotient.evaluate(values) * other.evaluate(values) == one.evaluate(values)


@quick
@given(expressions, assignments, st.sets(st.sampled_from(ATOMS)))
def test_bounds_hold(one: Expression, values: dict[Atom, int], positive: set[Atom]) -> None:
    values = {atom: max(size, 1) if atom in positive else size for atom, size in values.items()}
    bound = one.lower_bound(frozenset(positive))
    assert bound is None or one.evaluate(values) >= bound
    if one.is_nonzero(frozenset(positive)):
        assert one.evaluate(values) != 0


def test_what_can_be_proven() -> None:
    assert (A + ONE).is_nonzero()
    assert (-A - ONE).is_nonzero()
    assert not A.is_nonzero()
    assert A.is_nonzero(frozenset(ATOMS[:1]))
    assert not (A - B).is_nonzero(frozenset(ATOMS))
    assert not (C * C + ONE).is_nonzero()
    assert (A * B + A).at_least(A)
    assert not (A * B).at_least(A)


@pytest.mark.parametrize(
    ("dividend", "divisor"), [(A + ONE, A), (A, number(2)), (A * B, C), (ONE, ZERO), (A, A * A)]
)
def test_a_remainder_gives_no_quotient(dividend: Expression, divisor: Expression) -> None:
    assert dividend.quotient(divisor) is None


def test_constants_and_text() -> None:
    assert (number(2) * number(3)).constant == 6
    assert ZERO.constant == 0
    assert A.constant is None
    assert product([A, B, number(3)]) == number(3) * B * A
    assert product([]) == ONE
    assert str(number(2) * A * B - ONE) == "-1 + 2*dim:'a'*dim:'b'"
    assert str(ZERO) == "0"
    assert (A * B + C).atoms == frozenset(ATOMS)
