"""Shapes, and the contents of small integer tensors, as expressions over the dynamic sizes.

Exporters compute shapes with operators: ``Concat(Gather(Shape(x), 0), -1, 384)`` and so on. This
analysis follows such arithmetic without running it. `SymbolicFacts.shape` is the shape of a value,
`SymbolicFacts.integers` the contents of an integer tensor of rank 0 or 1; both are tuples of
`Expression`, so that "these two sizes are the same" can be asked where neither is known.

What it builds on: within a model, the same symbolic dimension is the same size; dimensions may be
0; statements hold for runs that do not fail. What an operator's own rule derives from its inputs
goes before the shape that the file states for the result, which may be out of date where somebody
made an input dynamic by hand; the stated shape fills the gaps.

The cost is linear: each value is worked out once, without recursion, on demand, and stays right
while exact rewrites go on around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import onnx_ir as ir

from onnxopt.analysis.expressions import Atom, Expression, number, symbol
from onnxopt.analysis.values import constant_array, dims
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["INTEGER_TYPES", "MOST_ELEMENTS", "Integers", "Shape", "SymbolicFacts"]

#: The shape of a value.
Shape = tuple[Expression, ...]

#: Longer vectors are no shapes.
MOST_ELEMENTS = 64
#: The element types whose contents are followed; booleans count as 0 and 1.
INTEGER_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
#: An expression with more terms, or a name longer than this many characters, becomes an atom.
_MOST_TERMS, _LONGEST_NAME = 16, 120


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


#: A question about a value.
_Task = tuple[Literal["integers", "shape"], ir.Value]


class _Pending(Exception):  # noqa: N818 - it is a request, not an error
    """Raised inside a rule: these questions must be answered first."""

    def __init__(self, tasks: Sequence[_Task]) -> None:
        super().__init__()
        self.tasks = tasks


class OperatorView:
    """What the rule of an operator may ask; each answer is about a value further upstream."""

    def __init__(self, answers: dict[_Task, Integers | Shape | None]) -> None:
        self._answers = answers

    def integers(self, *values: ir.Value | None) -> list[Integers | None]:
        """Contents of several values; None for what is missing or not known."""
        tasks: list[_Task | None] = [
            None if value is None else ("integers", value) for value in values
        ]
        self._require(tasks)
        found = [None if task is None else self._answers[task] for task in tasks]
        return [each if isinstance(each, Integers) else None for each in found]

    def shapes(self, *values: ir.Value | None) -> list[Shape | None]:
        """Shapes of several values; None for what is missing or of unknown rank."""
        tasks: list[_Task | None] = [
            None if value is None else ("shape", value) for value in values
        ]
        self._require(tasks)
        found = [None if task is None else self._answers[task] for task in tasks]
        return [each if isinstance(each, tuple) else None for each in found]

    def _require(self, tasks: Sequence[_Task | None]) -> None:
        missing = [task for task in tasks if task is not None and task not in self._answers]
        if missing:
            raise _Pending(missing)


class SymbolicFacts:
    """Answers about one model, kept for as long as this object lives.

    Use one for a run of a pass. Values may be added, and nodes replaced by others that compute the
    same, in the meantime.
    """

    def __init__(self) -> None:
        self._answers: dict[_Task, Integers | Shape | None] = {}
        self._view = OperatorView(self._answers)
        self._numbers: dict[ir.Value, int] = {}

    def integers(self, value: ir.Value | None) -> Integers | None:
        """Contents of an integer tensor of rank 0 or 1 with at most `MOST_ELEMENTS` elements.

        Elements that nothing is known of are atoms of their own. None for everything else, and
        where the number of elements is not known.
        """
        found = self._answer(("integers", value)) if value is not None else None
        return found if isinstance(found, Integers) else None

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape, or None when the rank is unknown.

        Dimensions that nothing is known of are atoms of their own.
        """
        found = self._answer(("shape", value)) if value is not None else None
        return found if isinstance(found, tuple) else None

    def _answer(self, question: _Task) -> Integers | Shape | None:
        stack, opened = [question], {question}
        while stack:
            task = stack[-1]
            if task not in self._answers:
                try:
                    self._answers[task] = self._work_out(task)
                except _Pending as pending:
                    for each in pending.tasks:
                        if each in opened:  # a graph with a cycle: nothing holds there
                            self._answers[each] = None
                        opened.add(each)
                    stack.extend(pending.tasks)
                    continue
            opened.discard(task)
            stack.pop()
        return self._answers[question]

    def _work_out(self, task: _Task) -> Integers | Shape | None:
        kind, value = task
        return self._integers(value) if kind == "integers" else self._shape(value)

    def _integers(self, value: ir.Value) -> Integers | None:
        if value.dtype is not None and value.dtype not in INTEGER_TYPES:
            return None
        if value.shape is not None and len(value.shape) > 1:
            return None
        array = constant_array(value, limit=MOST_ELEMENTS)
        if array is not None:
            dtype = ir.DataType.from_numpy(array.dtype)
            if dtype not in INTEGER_TYPES or array.ndim > 1:
                return None
            elements = tuple(number(int(each)) for each in array.reshape(-1))
            return Integers(elements, array.ndim == 0, dtype)
        derived = self._derive(value, integer_rule)
        if isinstance(derived, Integers) and len(derived.elements) <= MOST_ELEMENTS:
            return dataclasses.replace(
                derived,
                elements=tuple(
                    each if _is_small(each) else self._atom(value, index, "element")
                    for index, each in enumerate(derived.elements)
                ),
            )
        return self._unknown_integers(value)

    def _unknown_integers(self, value: ir.Value) -> Integers | None:
        """One atom an element, where type and length are known all the same."""
        if value.dtype not in INTEGER_TYPES:
            return None
        [shape] = self._view.shapes(value)
        if shape is None or len(shape) > 1:
            return None
        length = shape[0].constant if shape else 1
        if length is None or not 0 <= length <= MOST_ELEMENTS:
            return None
        elements = (self._atom(value, index, "element") for index in range(length))
        return Integers(tuple(elements), not shape, value.dtype)

    def _shape(self, value: ir.Value) -> Shape | None:
        stated = dims(value)
        derived: Sequence[Expression | None] | None = None
        if constant_array(value, limit=0) is None and value.producer() is not None:
            found = self._derive(value, shape_rule)
            if found is not None and not isinstance(found, Integers):
                derived = found
        if derived is None:
            if stated is None:
                return None
            derived = [None] * len(stated)
        if stated is None or len(stated) != len(derived):
            stated = (None,) * len(derived)
        shape: list[Expression] = []
        for axis, (known, dim) in enumerate(zip(derived, stated, strict=True)):
            if known is not None and _is_small(known):
                shape.append(known)
            elif isinstance(dim, int) and dim >= 0:
                shape.append(number(dim))
            elif isinstance(dim, str) and dim:
                shape.append(symbol(Atom("dim", dim)))
            else:
                shape.append(self._atom(value, axis, "axis"))
        return tuple(shape)

    def _derive(
        self, value: ir.Value, rule_of: _RuleTable
    ) -> Integers | Sequence[Expression | None] | None:
        node = value.producer()
        rule = rule_of(node) if node is not None and is_standard(node) else None
        if node is None or rule is None:
            return None
        index = value.index()
        assert index is not None
        try:
            return rule(node, index, self._view)
        except Refuse:
            return None

    def _atom(self, value: ir.Value, index: int, kind: str) -> Expression:
        serial = self._numbers.setdefault(value, len(self._numbers))
        nonnegative = kind == "axis" or value.dtype == ir.DataType.BOOL
        return symbol(Atom(kind, f"{serial}.{index}", nonnegative))


def _is_small(expression: Expression) -> bool:
    return len(expression.terms) <= _MOST_TERMS and all(
        len(monomial) <= _MOST_TERMS and all(len(atom.name) <= _LONGEST_NAME for atom in monomial)
        for monomial, _ in expression.terms
    )


# The tables of operators stand on the types above, hence their place at the end.
from onnxopt.analysis.symbolic_integers import integer_rule  # noqa: E402
from onnxopt.analysis.symbolic_shapes import shape_rule  # noqa: E402
