"""Replace control flow that can only go one way by what it does.

- If with a condition that is known: the branch that runs takes the place of the node. The condition
  may be a constant, or follow from sizes that are known (`onnxopt.analysis.symbolic`), such as
  ``Equal(Shape(x)[0], 1)`` before a Squeeze.
- If of which one branch gives a rank that what reads it cannot go on with, as an LSTM takes three
  dimensions only (`onnxopt.analysis.ranks`): the other branch takes the place. In a run that does
  not fail, it is the one that ran.
- Loop that runs no iteration (a trip count of at most 0, or a condition that is false at the
  start): its final values are the initial ones, and its scan outputs are empty.
- Loop that runs exactly one iteration (a trip count of 1, or a body that ends with a condition that
  is false): the body takes the place of the node, and each scan output gains an axis of size 1.

Exact. Left alone: everything that depends on data; Loop with two iterations or more, which would
grow the model; Scan and SequenceMap; empty scan outputs whose other dimensions are not known.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.ranks import Ranks
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.values import rank, stated_dims
from onnxopt.pass_contract import Outcome, Pass
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule, rewrite
from onnxopt.traversal import nodes_by_operator

from ..shared.handing_over import hand_over, require_tensors
from .inlining import Inliner, require_movable

__all__ = ["ResolveControlFlow"]

#: The opset from which Unsqueeze takes its axes as an input.
_OPSET_AXES_AS_INPUT = 13


def _known(value: ir.Value | None, facts: SymbolicFacts) -> int | None:
    """The number in a tensor of one element, or None."""
    integers = facts.integers(value)
    if integers is None or integers.constants is None or len(integers.constants) != 1:
        return None
    return integers.constants[0]


def _body(node: ir.Node, name: str) -> ir.Graph:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        raise Refuse("a body is a parameter of the function")
    return attribute.as_graph()


def _is_read(node: ir.Node) -> bool:
    """Whether anything depends on a node; if not, there is nothing to put in its place."""
    return any(output.uses() or output.is_graph_output() for output in node.outputs)


@dataclasses.dataclass
class _Branch:
    node: ir.Node
    taken: ir.Graph


class _BranchRule(RewriteRule[_Branch]):
    """Put a branch in the place of an If."""

    anchors: ClassVar[tuple[str, ...]] = ("If",)

    def __init__(self, inliner: Inliner) -> None:
        self._inliner = inliner

    def check(self, match: _Branch, context: Context) -> str | None:
        require_movable(match.node, match.taken, 0)
        return None

    def rewrite(self, match: _Branch, rewriter: Rewriter) -> None:
        results = self._inliner.move(match.taken, match.node, rewriter)
        for output, result in zip(match.node.outputs, results, strict=True):
            hand_over(output, result, rewriter)


class _TakeBranch(_BranchRule):
    """Take the branch that the condition says."""

    name = "take-branch"

    def __init__(self, facts: SymbolicFacts, inliner: Inliner) -> None:
        super().__init__(inliner)
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Branch | None:
        if not _is_read(node):
            return None
        condition = _known(node.inputs[0], self._facts)
        if condition is None:
            raise Refuse("the condition is only known when the model runs")
        return _Branch(node, _body(node, "then_branch" if condition else "else_branch"))


class _TakePossibleBranch(_BranchRule):
    """Take the only branch whose results have ranks that the model can go on with."""

    name = "take-possible-branch"

    def __init__(self, ranks: Ranks, inliner: Inliner) -> None:
        super().__init__(inliner)
        self._ranks = ranks

    def match(self, node: ir.Node, context: Context) -> _Branch | None:
        branches = [_body(node, name) for name in ("then_branch", "else_branch")]
        possible = [branch for branch in branches if self._may_run(node, branch)]
        return _Branch(node, possible[0]) if len(possible) == 1 else None

    def _may_run(self, node: ir.Node, branch: ir.Graph) -> bool:
        for output, result in zip(node.outputs, branch.outputs, strict=False):
            required = self._ranks.required(output)
            if required is None:
                continue
            given = self._ranks.possible(result)
            if given is not None and required.isdisjoint(given):
                return False
        return True


@dataclasses.dataclass
class _Loop:
    """A Loop, by the parts that the operator's signature has.

    Attributes:
        node: The node.
        body: Its body.
        initial: Values that the first iteration gets.
    """

    node: ir.Node
    body: ir.Graph
    initial: list[ir.Value]

    @classmethod
    def of(cls, node: ir.Node) -> _Loop:
        body = _body(node, "body")
        initial = [value for value in node.inputs[2:] if value is not None]
        carried = len(node.inputs) - 2
        if (
            len(initial) != carried
            or len(body.inputs) != carried + 2
            or len(body.outputs) != len(node.outputs) + 1
        ):
            raise Refuse("the body has another number of inputs or outputs")
        return cls(node, body, initial)

    def iterations(self, facts: SymbolicFacts) -> int | None:
        """0 or 1 when the number of iterations is known to be that, else None."""
        limit, condition = self.node.inputs[0], self.node.inputs[1]
        count, start = _known(limit, facts), _known(condition, facts)
        if start == 0 or (count is not None and count <= 0):
            return 0
        if condition is not None and start is None:
            return None
        if count == 1:
            return 1
        # Without a condition at the start, the body's own is not looked at.
        ends = condition is not None and _known(self.body.outputs[0], facts) == 0
        return 1 if ends and (limit is None or count is not None) else None


class _SkipLoop(RewriteRule[_Loop]):
    """Replace the outputs of a Loop that runs no iteration."""

    name = "skip-loop"
    anchors: ClassVar[tuple[str, ...]] = ("Loop",)

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Loop | None:
        if not _is_read(node):
            return None
        loop = _Loop.of(node)
        return loop if loop.iterations(self._facts) == 0 else None

    def check(self, match: _Loop, context: Context) -> str | None:
        require_tensors(match.node)
        for output, result in self._scans(match):
            if not output.uses() and not output.is_graph_output():
                continue
            if _stated_shape(result) is None:
                return "the shape of an empty scan output is not known"
            if result.dtype is None or result.dtype == ir.DataType.STRING:
                return "the type of an empty scan output is not known to be numeric"
        return None

    @staticmethod
    def _scans(loop: _Loop) -> list[tuple[ir.Value, ir.Value]]:
        carried = len(loop.initial)
        outputs, results = loop.node.outputs[carried:], loop.body.outputs[1 + carried :]
        return list(zip(outputs, results, strict=True))

    def rewrite(self, match: _Loop, rewriter: Rewriter) -> None:
        for output, result in self._scans(match):
            if output.uses() or output.is_graph_output():
                shape, dtype = _stated_shape(result), result.dtype
                assert shape is not None
                assert dtype is not None
                empty = np.zeros((0, *shape), dtype=dtype.numpy())
                name = f"{output.name}_empty"
                hand_over(output, rewriter.initializer(empty, name, like=result), rewriter)
        for output, value in zip(match.node.outputs, match.initial, strict=False):
            hand_over(output, value, rewriter)


def _stated_shape(result: ir.Value) -> tuple[int, ...] | None:
    """The shape that the body states for what it gives out, when all of it is numbers.

    The runtime makes empty scan outputs of what is stated there, whatever the body would do.
    """
    stated = stated_dims(result)
    numbers = tuple(size for size in stated or () if isinstance(size, int))
    return None if stated is None or len(numbers) < len(stated) else numbers


class _InlineOnlyIteration(RewriteRule[_Loop]):
    """Put the body in the place of a Loop that runs one iteration."""

    name = "inline-only-iteration"
    anchors: ClassVar[tuple[str, ...]] = ("Loop",)

    def __init__(self, facts: SymbolicFacts, inliner: Inliner) -> None:
        self._facts = facts
        self._inliner = inliner

    def match(self, node: ir.Node, context: Context) -> _Loop | None:
        if not _is_read(node):
            return None
        loop = _Loop.of(node)
        match loop.iterations(self._facts):
            case None:
                raise Refuse("it may run more than one iteration")
            case 1:
                return loop
        return None

    def check(self, match: _Loop, context: Context) -> str | None:
        require_movable(match.node, match.body, 1)
        return None

    def rewrite(self, match: _Loop, rewriter: Rewriter) -> None:
        number, condition, *carried = match.body.inputs
        arguments = dict(zip(carried, match.initial, strict=True))
        for value, first in ((number, np.int64(0)), (condition, np.bool_(True))):
            if value.uses() or value.is_graph_output():
                array = np.array(first).reshape((1,) if rank(value) == 1 else ())
                arguments[value] = rewriter.initializer(array, value.name or "iteration")
        results = self._inliner.move(match.body, match.node, rewriter, arguments)[1:]
        for index, (output, result) in enumerate(zip(match.node.outputs, results, strict=True)):
            is_scan = index >= len(carried)
            if is_scan and (output.uses() or output.is_graph_output()):
                result = _stacked(result, output, match.node, rewriter)
            hand_over(output, result, rewriter)


def _stacked(value: ir.Value, output: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """A scan output of one iteration: the value with a new axis before the others."""
    if rewriter.context.opset(node) < _OPSET_AXES_AS_INPUT:
        return rewriter.op("Unsqueeze", [value], {"axes": [0]}, like=output)
    axes = rewriter.initializer(np.array([0], dtype=np.int64), f"{output.name}_axes")
    return rewriter.op("Unsqueeze", [value, axes], like=output)


class ResolveControlFlow(Pass):
    """Replace control flow that can only go one way by what it does."""

    name = "resolve-control-flow"
    settles = False  # what is known does not grow while it runs

    def run(self, model: ir.Model) -> Outcome:
        """Apply the rules, which share what is known of the model, until none matches."""
        if not any(op_type in nodes_by_operator(model) for op_type in ("If", "Loop")):
            return Outcome(model, False)
        facts, inliner = SymbolicFacts(), Inliner()
        rules: list[RewriteRule[Any]] = [
            _TakeBranch(facts, inliner),
            _TakePossibleBranch(Ranks(model, facts), inliner),
            _SkipLoop(facts),
            _InlineOnlyIteration(facts, inliner),
        ]
        return rewrite(model, rules, self.max_rewrites)
