"""Work out shapes that the model computes, as far as they are known before it runs.

Exporters write ``x.view(b, s, 12, 32)`` as a dozen nodes that take the shape of ``x`` apart and put
it together again. With sizes as symbolic expressions (`onnxopt.analysis.symbolic`) such a chain is
followed to its end, and what it feeds is rewritten:

- integers that come out as numbers become constants;
- a computed target of Reshape or Expand becomes a constant one: 0 copies a dynamic size, at most
  one -1 infers it, 1 leaves it to the input (`onnxopt.analysis.reshape_targets` has the details);
- Reshape, Expand, Slice, Tile and Flatten that keep the shape are left out;
- a vector put together from parts of ``Shape(x)`` becomes ``Shape(x)``, or a part of it;
- ``Shape(y)`` asks an earlier value of the same shape, where y is needed for nothing else;
- a tensor that is filled or expanded to the shape of its neighbour in an arithmetic operator is
  left to broadcasting.

Exact. Dynamic sizes stay dynamic, and a size may be 0: a rewrite that works for every size but 0 is
not made. Left alone: shapes that depend on the data, and everything with two unknown sizes where a
constant has room for one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.expressions import Expression
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.symbolic_integers import INTEGER_OPERATORS
from onnxopt.analysis.symbolic_values import broadcast
from onnxopt.analysis.values import has_one_use, is_constant
from onnxopt.op_traits import Trait, has_trait, is_deterministic, is_standard
from onnxopt.pass_contract import Outcome, Pass
from onnxopt.rewriting import Context, Rewriter, RewriteRule, can_replace, rewrite

from .folds import FixTarget, ForwardKeptShape

__all__ = ["FoldShapes"]

#: The opset from which Shape has ``start`` and ``end``.
_OPSET_PART_OF_SHAPE = 15
#: How many nodes upstream of a vector are searched for the Shape it is made from.
_MOST_SEARCHED = 64
#: How far downstream of a part of a Shape a Concat is searched for.
_MOST_STEPS_TO_CONCAT = 3


@dataclasses.dataclass
class _Known:
    value: ir.Value
    numbers: np.ndarray[Any, Any]


class _FoldKnownIntegers(RewriteRule[_Known]):
    """Replace integers that are the same in every run by a constant."""

    name = "fold-known-integers"
    anchors: ClassVar[tuple[str, ...]] = INTEGER_OPERATORS

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Known | None:
        if len(node.outputs) != 1:
            return None
        known = self._facts.integers(node.outputs[0])
        if known is None or known.constants is None:
            return None
        numbers = np.array(known.constants, dtype=known.dtype.numpy())
        return _Known(node.outputs[0], numbers.reshape(() if known.is_scalar else (-1,)))

    def check(self, match: _Known, context: Context) -> str | None:
        if match.value.is_graph_output():
            return "a graph output must be made by a node"
        return None

    def rewrite(self, match: _Known, rewriter: Rewriter) -> None:
        rewriter.replace(
            match.value, rewriter.initializer(match.numbers, match.value.name or "known")
        )


@dataclasses.dataclass
class _Part:
    vector: ir.Value
    shape: ir.Node
    start: int
    end: int
    is_whole: bool


class _ReuseShape(RewriteRule[_Part]):
    """Replace a vector that is put together from a Shape by that Shape, or by a part of it."""

    name = "reuse-shape"
    anchors: ClassVar[tuple[str, ...]] = ("Concat", "Slice", "Gather")
    depth = 4

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Part | None:
        vector = node.outputs[0]
        wanted = self._facts.integers(vector)
        if wanted is None or wanted.is_scalar or wanted.constants is not None:
            return None
        if wanted.dtype != ir.DataType.INT64:
            return None
        for shape in _shapes_upstream(node):
            found = self._facts.integers(shape.outputs[0])
            start = None if found is None else _find(wanted.elements, found.elements)
            if found is not None and start is not None:
                is_whole = len(wanted.elements) == len(found.elements)
                return _Part(vector, shape, start, start + len(wanted.elements), is_whole)
        return None

    def check(self, match: _Part, context: Context) -> str | None:
        if match.is_whole:
            if not can_replace(match.vector, match.shape.outputs[0]):
                return "it names a graph output that is made elsewhere"
            return None
        if context.opset(match.shape) < _OPSET_PART_OF_SHAPE:
            return "Shape of a part needs opset 15"
        if _leads_to_concat(match.vector):
            # ONNX Runtime looks for Shape, Gather, Concat before a Reshape when it loads a model.
            return "the runtime looks for this pattern"
        node = match.vector.producer()
        assert node is not None
        if not any(value is not None and _dies_with(value, node) for value in node.inputs):
            return "it would save no node"
        return None

    def rewrite(self, match: _Part, rewriter: Rewriter) -> None:
        if match.is_whole:
            rewriter.replace(match.vector, match.shape.outputs[0])
            return
        attributes = {"start": match.start, "end": match.end}
        part = rewriter.op("Shape", [match.shape.inputs[0]], attributes, like=match.vector)
        rewriter.replace(match.vector, part)


def _shapes_upstream(node: ir.Node) -> list[ir.Node]:
    """Whole Shape nodes that integer arithmetic above a node starts from, nearest first."""
    found: list[ir.Node] = []
    level, seen = [node], {node}
    while level and len(seen) < _MOST_SEARCHED:
        following: list[ir.Node] = []
        for each in level:
            for value in each.inputs:
                producer = value.producer() if value is not None else None
                if producer is None or producer in seen or not is_standard(producer):
                    continue
                seen.add(producer)
                if producer.op_type == "Shape":
                    if not producer.attributes:
                        found.append(producer)
                elif producer.op_type in INTEGER_OPERATORS:
                    following.append(producer)
        level = following
    return found


def _leads_to_concat(vector: ir.Value) -> bool:
    """Whether a vector goes into a Concat, with a few steps of arithmetic between at most."""
    level = [vector]
    for _ in range(_MOST_STEPS_TO_CONCAT):
        readers = [reader for value in level for reader in value.consumers()[:_MOST_SEARCHED]]
        if any(reader.op_type == "Concat" for reader in readers):
            return True
        level = [output for reader in readers[:_MOST_SEARCHED] for output in reader.outputs]
    return False


def _find(part: tuple[Expression, ...], whole: tuple[Expression, ...]) -> int | None:
    for start in range(len(whole) - len(part) + 1):
        if whole[start : start + len(part)] == part:
            return start
    return None


def _dies_with(value: ir.Value, node: ir.Node) -> bool:
    """Whether the node that makes a value has no other reader than the given one."""
    producer = value.producer()
    return (
        producer is not None
        and len(producer.outputs) == 1
        and not value.is_graph_output()
        and producer.op_type != "Constant"
        and all(reader is node for reader in value.consumers())
    )


@dataclasses.dataclass
class _Source:
    shape: ir.Node
    earlier: ir.Value


class _AskEarlierShape(RewriteRule[_Source]):
    """Take the shape of an earlier value where the later one is made for nothing else."""

    name = "ask-earlier-shape"
    anchors: ClassVar[tuple[str, ...]] = ("Shape",)

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Source | None:
        value = node.inputs[0]
        wanted = self._facts.shape(value)
        producer = value.producer() if value is not None else None
        if value is None or wanted is None or producer is None or value.is_graph_output():
            return None
        if not is_deterministic(producer) or has_trait(producer, Trait.CONTROL_FLOW):
            return None
        if any(reader.op_type != "Shape" or reader.domain for reader in value.consumers()):
            return None
        for earlier in producer.inputs:
            if (
                earlier is not None
                and not is_constant(earlier)
                and self._facts.shape(earlier) == wanted
            ):
                return _Source(node, earlier)
        return None

    def rewrite(self, match: _Source, rewriter: Rewriter) -> None:
        rewriter.replace_input(match.shape, 0, match.earlier)


@dataclasses.dataclass
class _Operand:
    node: ir.Node
    index: int
    fill: ir.TensorProtocol | None
    narrow: ir.Value | None


class _LeaveToBroadcasting(RewriteRule[_Operand]):
    """Use the number or the small tensor itself instead of one filled or expanded with it."""

    name = "leave-to-broadcasting"
    anchors: ClassVar[tuple[str, ...]] = (
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "And", "Or", "Xor"),
        *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"),
    )

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Operand | None:
        for index, value in enumerate(node.inputs):
            producer = value.producer() if value is not None else None
            if value is None or producer is None or not is_standard(producer):
                continue
            operand = self._operand(node, index, producer)
            if operand is not None and has_one_use(value) and self._keeps_shape(operand):
                return operand
        return None

    def _operand(self, node: ir.Node, index: int, producer: ir.Node) -> _Operand | None:
        if producer.op_type == "Expand":
            return _Operand(node, index, None, producer.inputs[0])
        if producer.op_type != "ConstantOfShape":
            return None
        attribute = producer.attributes.get("value")
        if attribute is not None and attribute.is_ref():
            return None
        zero = ir.tensor(np.zeros(1, dtype=np.float32))
        return _Operand(node, index, zero if attribute is None else attribute.as_tensor(), None)

    def _keeps_shape(self, operand: _Operand) -> bool:
        narrow = () if operand.narrow is None else self._facts.shape(operand.narrow)
        wanted = self._facts.shape(operand.node.outputs[0])
        if narrow is None or wanted is None:
            return False
        result: list[Expression | None] = list(narrow)
        for index, value in enumerate(operand.node.inputs):
            if index != operand.index:
                shape = self._facts.shape(value)
                if shape is None:
                    return False
                result = broadcast(result, shape)
        return tuple(result) == wanted

    def rewrite(self, match: _Operand, rewriter: Rewriter) -> None:
        value = match.narrow
        if match.fill is not None:
            number = match.fill.numpy().reshape(())
            tensor = ir.Tensor(number, dtype=match.fill.dtype)
            value = rewriter.initializer_tensor(tensor, f"{match.node.outputs[0].name}_fill")
        rewriter.replace_input(match.node, match.index, value)


class FoldShapes(Pass):
    """Work out shapes that the model computes, as far as they are known before it runs."""

    name = "fold-shapes"

    def run(self, model: ir.Model) -> Outcome:
        """Apply the rules, which share what is known of the model, until none matches."""
        facts = SymbolicFacts(model)
        rules: list[RewriteRule[Any]] = [
            _FoldKnownIntegers(facts),
            ForwardKeptShape(facts),
            FixTarget(facts),
            _ReuseShape(facts),
            _AskEarlierShape(facts),
            _LeaveToBroadcasting(facts),
        ]
        return rewrite(model, rules, self.max_rewrites)
