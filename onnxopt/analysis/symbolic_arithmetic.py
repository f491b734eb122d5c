"""Operators on single integers that are not known, as far as they can be worked out.

Where an operator is no polynomial (a division with a remainder, a minimum) and its operands are not
known well enough, the result is an atom named after the operation, so that the same operation on
the same sizes is still recognised as the same number. Booleans are 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxopt.analysis.expressions import ONE, ZERO, Atom, Expression, number, symbol

__all__ = [
    "absolute",
    "both",
    "choose",
    "divide",
    "either",
    "equal",
    "exactly_one",
    "less",
    "less_or_equal",
    "maximum",
    "minimum",
    "modulo",
    "remainder",
    "truth",
]


def _is_nonnegative(*elements: Expression) -> bool:
    return all(element.at_least(ZERO) for element in elements)


def _named(operation: str, nonnegative: bool, *operands: Expression) -> Expression:
    """An atom for the result of an operation that is no polynomial, or is not known."""
    return symbol(Atom("result", f"{operation}({', '.join(map(str, operands))})", nonnegative))


def divide(dividend: Expression, divisor: Expression) -> Expression:
    """The quotient, rounded towards 0 as ONNX's Div does."""
    numerator, denominator = dividend.constant, divisor.constant
    if numerator is not None and denominator:
        quotient = abs(numerator) // abs(denominator)
        return number(quotient if numerator * denominator >= 0 else -quotient)
    exact = dividend.quotient(divisor)
    if exact is not None:
        return exact
    return _named("div", _is_nonnegative(dividend, divisor), dividend, divisor)


def modulo(dividend: Expression, divisor: Expression) -> Expression:
    """The remainder with the sign of the divisor."""
    numerator, denominator = dividend.constant, divisor.constant
    if numerator is not None and denominator:
        return number(numerator % denominator)
    if dividend.quotient(divisor) is not None:
        return ZERO
    return _named("mod", _is_nonnegative(divisor), dividend, divisor)


def remainder(dividend: Expression, divisor: Expression) -> Expression:
    """The remainder with the sign of the dividend."""
    return dividend - divide(dividend, divisor) * divisor


def minimum(*operands: Expression) -> Expression:
    """The least of the operands."""
    return _extreme("min", lambda one, other: other.at_least(one), operands)


def maximum(*operands: Expression) -> Expression:
    """The greatest of the operands."""
    return _extreme("max", lambda one, other: one.at_least(other), operands)


def _extreme(
    name: str, wins: Callable[[Expression, Expression], bool], operands: Sequence[Expression]
) -> Expression:
    for operand in operands:
        if all(wins(operand, other) for other in operands):
            return operand
    some = any if name == "max" else all
    nonnegative = some(_is_nonnegative(each) for each in operands)
    return _named(name, nonnegative, *sorted(set(operands), key=str))


def absolute(operand: Expression) -> Expression:
    """The absolute value."""
    if _is_nonnegative(operand):
        return operand
    return -operand if _is_nonnegative(-operand) else _named("abs", True, operand)


def equal(one: Expression, other: Expression) -> Expression:
    """Whether the operands are the same."""
    if one == other:
        return ONE
    return ZERO if (one - other).is_nonzero() else _named("equal", True, one, other)


def less(one: Expression, other: Expression) -> Expression:
    """Whether the first operand is less than the second."""
    if other.at_least(one + ONE):
        return ONE
    return ZERO if one.at_least(other) else _named("less", True, one, other)


def less_or_equal(one: Expression, other: Expression) -> Expression:
    """Whether the first operand is not greater than the second."""
    return ONE - less(other, one)


def both(one: Expression, other: Expression) -> Expression:
    """Logical and."""
    return one * other if one != other else one


def either(one: Expression, other: Expression) -> Expression:
    """Logical or."""
    return ONE - both(ONE - one, ONE - other)


def exactly_one(one: Expression, other: Expression) -> Expression:
    """Logical exclusive or."""
    return one + other - number(2) * both(one, other)


def choose(condition: Expression, one: Expression, other: Expression) -> Expression:
    """The first of two operands where the condition holds, else the second."""
    if condition.constant is not None:
        return one if condition.constant else other
    if one == other:
        return one
    return _named("where", _is_nonnegative(one, other), condition, one, other)


def truth(operand: Expression) -> Expression:
    """Whether the operand is not 0."""
    return ONE - equal(operand, ZERO)
