"""Integer expressions over sizes that are only known when the model runs.

An `Expression` is a polynomial with integer coefficients over atoms: named dimensions, single
elements of integer tensors, and results of operators that are no polynomials (a division that
leaves a remainder, say). Polynomials have one normal form, so two expressions that are equal as
Python objects are equal in every run; the converse does not hold, and whoever cannot prove a thing
here has to assume nothing.

Arithmetic is that of unbounded integers: sizes of tensors are far from the limits of int64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

__all__ = ["ONE", "ZERO", "Atom", "Expression", "number", "product", "symbol"]


class Atom(NamedTuple):
    """A quantity with no known value.

    Attributes:
        kind: Where it comes from; atoms of different kinds never share a name by accident.
        name: Tells it from others of its kind.
        nonnegative: Whether it is certainly at least 0 (a dimension is; it may be 0).
    """

    kind: str
    name: str
    nonnegative: bool = True

    def __str__(self) -> str:
        return f"{self.kind}:{self.name!r}"


#: A product of atoms, sorted, an atom as often as its power says. The empty one is 1.
_Monomial = tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """A polynomial; make one with `number` and `symbol`, and from there by arithmetic.

    Attributes:
        terms: Monomials and their coefficients (never 0), in graded order; none at all is 0.
    """

    terms: tuple[tuple[_Monomial, int], ...]

    def __add__(self, other: Expression) -> Expression:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms:
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _normal(terms)

    def __neg__(self) -> Expression:
        return Expression(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __sub__(self, other: Expression) -> Expression:
        return self + -other

    def __mul__(self, other: Expression) -> Expression:
        terms: dict[_Monomial, int] = {}
        for left, factor in self.terms:
            for right, coefficient in other.terms:
                monomial = tuple(sorted(left + right))
                terms[monomial] = terms.get(monomial, 0) + factor * coefficient
        return _normal(terms)

    def __str__(self) -> str:
        """Text that is the same for equal expressions, and for those only."""
        if not self.terms:
            return "0"
        return " + ".join(
            "*".join(
                [str(coefficient)] * (coefficient != 1 or not monomial)
                + [str(atom) for atom in monomial]
            )
            for monomial, coefficient in self.terms
        )

    @property
    def constant(self) -> int | None:
        """The number this expression is in every run, or None when it depends on something."""
        match self.terms:
            case ():
                return 0
            case (((), coefficient),):
                return coefficient
        return None

    @property
    def atoms(self) -> frozenset[Atom]:
        """All atoms in it."""
        return frozenset(atom for monomial, _ in self.terms for atom in monomial)

    def quotient(self, divisor: Expression) -> Expression | None:
        """The expression q with ``self = q * divisor`` wherever the divisor is not 0.

        None when there is no such polynomial with integer coefficients. Polynomial long division
        by leading terms in graded order; exact, so it does not matter how an operator rounds.
        """
        if not divisor.terms:
            return None
        leading, factor = divisor.terms[-1]
        result, rest = ZERO, self
        while rest.terms:
            monomial, coefficient = rest.terms[-1]
            remaining = _without(monomial, leading)
            if remaining is None or coefficient % factor:
                return None
            step = Expression(((remaining, coefficient // factor),))
            result, rest = result + step, rest - step * divisor
        return result

    def lower_bound(self, positive: frozenset[Atom] = frozenset()) -> int | None:
        """A number that this is certainly not below, or None when there is none to be proven.

        Args:
            positive: Atoms that are known to be at least 1.
        """
        bound = 0
        for monomial, coefficient in self.terms:
            if not monomial:
                bound += coefficient
            elif coefficient < 0 or not all(atom.nonnegative for atom in monomial):
                return None
            elif positive.issuperset(monomial):
                bound += coefficient
        return bound

    def is_nonzero(self, positive: frozenset[Atom] = frozenset()) -> bool:
        """Whether this is certainly not 0; see `lower_bound`."""
        for expression in (self, -self):
            bound = expression.lower_bound(positive)
            if bound is not None and bound > 0:
                return True
        return False

    def at_least(self, other: Expression) -> bool:
        """Whether this is certainly not below another expression."""
        bound = (self - other).lower_bound()
        return bound is not None and bound >= 0

    def evaluate(self, values: Mapping[Atom, int]) -> int:
        """The number it is for given values of its atoms."""
        return sum(
            coefficient * math.prod(values[atom] for atom in monomial)
            for monomial, coefficient in self.terms
        )


def _order(term: tuple[_Monomial, int]) -> tuple[int, _Monomial]:
    """Graded order: it is kept when both sides are multiplied by a monomial, as division needs."""
    return len(term[0]), term[0]


def _normal(terms: Mapping[_Monomial, int]) -> Expression:
    return Expression(tuple(sorted((term for term in terms.items() if term[1]), key=_order)))


def _without(monomial: _Monomial, divisor: _Monomial) -> _Monomial | None:
    rest = list(monomial)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


@functools.lru_cache(maxsize=4096)
def number(value: int) -> Expression:
    """The expression that is always this number."""
    return Expression((((), value),) if value else ())


ZERO, ONE = number(0), number(1)


def symbol(atom: Atom) -> Expression:
    """The expression that is one atom."""
    return Expression((((atom,), 1),))


def product(factors: Iterable[Expression]) -> Expression:
    """The product of some expressions; 1 for none."""
    multiply: Callable[[Expression, Expression], Expression] = Expression.__mul__
    return functools.reduce(multiply, factors, ONE)
