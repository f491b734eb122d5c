"""Shapes, and the contents of small integer tensors, as expressions over the dynamic sizes.

Exporters compute shapes with operators: ``Concat(Gather(Shape(x), 0), -1, 384)`` and so on. This
analysis follows such arithmetic without running it. `SymbolicFacts.shape` is the shape of a value,
`SymbolicFacts.integers` the contents of an integer tensor of rank 0 or 1; both are made of
`Expression`, so that "are these two sizes the same" can be asked where neither is known.

What it builds on: within a model, the same symbolic dimension is the same size; dimensions may be
0; statements hold for runs that do not fail. What an operator's own rule derives from its inputs
goes before the shape that the file states for the result, which may be out of date where somebody
made an input dynamic by hand; the stated shape fills the gaps.

Where the file states no shape of an inner value, those that inference has found since come from the
operators too, and where they consist of numbers and sizes of the inputs, they are the answer: there
is no need to look upstream.

The cost is linear: each value is worked out once, without recursion, on demand, and stays right
while exact rewrites go on around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import onnx_ir as ir

from onnxopt.analysis.expressions import Atom, Expression, number, symbol
from onnxopt.analysis.symbolic_integers import integer_rule
from onnxopt.analysis.symbolic_shapes import shape_rule
from onnxopt.analysis.symbolic_values import (
    INTEGER_TYPES,
    MOST_ELEMENTS,
    Integers,
    Questions,
    Shape,
)
from onnxopt.analysis.values import Dim, constant, dims, rank
from onnxopt.model import states_no_inner_shape
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse
from onnxopt.traversal import graphs_of

__all__ = ["Integers", "Shape", "SymbolicFacts"]

#: An expression with more terms or factors, or an atom with a longer name, becomes one atom, so
#: that long chains of arithmetic stay linear.
_MOST_TERMS, _LONGEST_NAME = 16, 120

#: A question about a value.
_Task = tuple[Literal["integers", "shape"], ir.Value]
_Answer = Integers | Shape | None
_Fact = TypeVar("_Fact")


class _Pending(Exception):  # noqa: N818 - it is a request, not an error
    """Raised inside a rule: these questions must be answered first."""

    def __init__(self, tasks: Sequence[_Task]) -> None:
        super().__init__()
        self.tasks = tasks


class _Answered:
    """Questions for rules: answered from what is known, else put off by `_Pending`."""

    def __init__(self, answers: dict[_Task, _Answer]) -> None:
        self._answers = answers

    def integers(self, *values: ir.Value | None) -> list[Integers | None]:
        found = self._ask([None if value is None else ("integers", value) for value in values])
        return [each if isinstance(each, Integers) else None for each in found]

    def shapes(self, *values: ir.Value | None) -> list[Shape | None]:
        found = self._ask([None if value is None else ("shape", value) for value in values])
        return [each if isinstance(each, tuple) else None for each in found]

    def _ask(self, tasks: Sequence[_Task | None]) -> list[_Answer]:
        missing = [task for task in tasks if task is not None and task not in self._answers]
        if missing:
            raise _Pending(missing)
        return [None if task is None else self._answers[task] for task in tasks]


class SymbolicFacts:
    """Answers about one model, kept for as long as this object lives.

    Use one for a run of a pass. In the meantime values may be added, and nodes replaced by others
    that compute the same.

    Args:
        model: The model, as it came from the file but for exact rewrites and inference. Without it,
            shapes of values are taken for what the file states.
    """

    def __init__(self, model: ir.Model | None = None) -> None:
        self._input_symbols = None if model is None else _symbols_to_rely_on(model)
        self._answers: dict[_Task, _Answer] = {}
        self._questions = _Answered(self._answers)
        self._serials: dict[ir.Value, int] = {}

    def integers(self, value: ir.Value | None) -> Integers | None:
        """Contents of an integer tensor of rank 0 or 1 with at most `MOST_ELEMENTS` elements.

        Elements that nothing is known of are atoms of their own. None for everything else, and
        where the number of elements is not known.
        """
        if value is None or (value.dtype is not None and value.dtype not in INTEGER_TYPES):
            return None
        found = self._answer(("integers", value))
        return found if isinstance(found, Integers) else None

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape, or None when the rank is unknown.

        Dimensions that nothing is known of are atoms of their own.
        """
        found = self._answer(("shape", value)) if value is not None else None
        return found if isinstance(found, tuple) else None

    def _answer(self, question: _Task) -> _Answer:
        stack, waiting = [question], set[_Task]()
        while stack:
            task = stack[-1]
            if task not in self._answers:
                try:
                    self._answers[task] = self._work_out(*task)
                except _Pending as pending:
                    waiting.add(task)
                    for each in waiting.intersection(pending.tasks):
                        self._answers[each] = None  # the graph has a cycle: nothing holds there
                    stack.extend(pending.tasks)
                    continue
            waiting.discard(task)
            stack.pop()
        return self._answers[question]

    def _work_out(self, kind: str, value: ir.Value) -> _Answer:
        return self._integers(value) if kind == "integers" else self._shape(value)

    def _integers(self, value: ir.Value) -> Integers | None:
        if value.dtype is not None and value.dtype not in INTEGER_TYPES:
            return None
        if (rank(value) or 0) > 1:
            return None
        tensor = constant(value)
        if tensor is not None:
            if tensor.dtype not in INTEGER_TYPES or tensor.size > MOST_ELEMENTS:
                return None
            elements = tuple(number(int(each)) for each in tensor.numpy().reshape(-1))
            return Integers(elements, len(tensor.shape) == 0, tensor.dtype)
        derived = self._derive(value, integer_rule)
        if derived is None or len(derived.elements) > MOST_ELEMENTS:
            return self._unknown_integers(value)
        elements = tuple(
            each if _is_small(each) else self._atom(value, index, "element")
            for index, each in enumerate(derived.elements)
        )
        return dataclasses.replace(derived, elements=elements)

    def _unknown_integers(self, value: ir.Value) -> Integers | None:
        """One atom an element, where type and length are known all the same."""
        if value.dtype is None:
            return None
        [shape] = self._questions.shapes(value)
        if shape is None or len(shape) > 1:
            return None
        length = shape[0].constant if shape else 1
        if length is None or not 0 <= length <= MOST_ELEMENTS:
            return None
        elements = (self._atom(value, index, "element") for index in range(length))
        return Integers(tuple(elements), not shape, value.dtype)

    def _shape(self, value: ir.Value) -> Shape | None:
        stated = dims(value)
        if stated is not None and self._is_inferred(value, stated):
            return tuple(
                number(dim) if isinstance(dim, int) else symbol(Atom("dim", dim or ""))
                for dim in stated
            )
        derived = self._derive(value, shape_rule)
        if derived is None and stated is None:
            return None
        if derived is None:
            derived = [None] * len(stated or ())
        if stated is None or len(stated) != len(derived):
            stated = (None,) * len(derived)
        shape: list[Expression] = []
        for axis, (known, dim) in enumerate(zip(derived, stated, strict=True)):
            if known is not None and _is_small(known):
                shape.append(known)
            elif isinstance(dim, int):
                shape.append(number(dim))
            elif dim is not None:
                shape.append(symbol(Atom("dim", dim)))
            else:
                shape.append(self._atom(value, axis, "axis"))
        return tuple(shape)

    def _is_inferred(self, value: ir.Value, stated: Sequence[Dim]) -> bool:
        """Whether a shape is as good as what could be derived from the operators."""
        known = self._input_symbols
        return (
            known is not None
            and not value.is_graph_output()
            and all(isinstance(dim, int) or dim in known for dim in stated)
        )

    def _derive(
        self,
        value: ir.Value,
        rule_of: Callable[[ir.Node], Callable[[ir.Node, int, Questions], _Fact | None] | None],
    ) -> _Fact | None:
        node = value.producer()
        rule = rule_of(node) if node is not None and is_standard(node) else None
        if node is None or rule is None:
            return None
        index = value.index()
        assert index is not None
        try:
            return rule(node, index, self._questions)
        except Refuse:
            return None

    def _atom(self, value: ir.Value, index: int, kind: str) -> Expression:
        serial = self._serials.setdefault(value, len(self._serials))
        nonnegative = kind == "axis" or value.dtype == ir.DataType.BOOL
        return symbol(Atom(kind, f"{serial}.{index}", nonnegative))


def _symbols_to_rely_on(model: ir.Model) -> frozenset[str] | None:
    """Symbolic sizes of the inputs; None where inference may have started from a stated shape.

    Such are those of inner values, of outputs that something reads, and of the inputs and outputs
    of bodies.
    """
    if not states_no_inner_shape(model) or len(graphs_of(model)) > 1:
        return None
    if any(output.uses() for output in model.graph.outputs):
        return None
    sizes = [dim for value in model.graph.inputs for dim in dims(value) or ()]
    return frozenset(dim for dim in sizes if isinstance(dim, str))


def _is_small(expression: Expression) -> bool:
    return len(expression.terms) <= _MOST_TERMS and all(
        len(monomial) <= _MOST_TERMS and all(len(atom.name) <= _LONGEST_NAME for atom in monomial)
        for monomial, _ in expression.terms
    )
