"""Rules of fold-shapes for operators that take a computed shape: Reshape, Expand, Slice, Tile."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.expressions import Atom
from onnxopt.analysis.nonzero_sizes import nonzero_sizes
from onnxopt.analysis.reshape_targets import expand_target, reshape_target
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.values import is_constant
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule, can_replace

__all__ = ["FixTarget", "ForwardKeptShape"]


#: Operators that keep the order of the elements, whatever the shape.
_KEEP_ORDER = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
#: How many of them in a row are looked through.
_LONGEST_CHAIN = 8


def _origins(node: ir.Node) -> Iterator[ir.Value]:
    """The input of a node, and earlier values with the same elements in the same order."""
    for _ in range(_LONGEST_CHAIN):
        value = node.inputs[0]
        if value is None:
            return
        yield value
        producer = value.producer()
        if producer is None or not is_standard(producer) or producer.op_type not in _KEEP_ORDER:
            return
        node = producer


@dataclasses.dataclass
class _Kept:
    node: ir.Node
    origin: ir.Value


class ForwardKeptShape(RewriteRule[_Kept]):
    """Let readers of a value read an earlier one of the same shape and elements.

    Reshape, Squeeze and their like keep the order of the elements, so that a chain of them that
    comes back to the shape it started from does nothing. Expand, Slice and Tile change nothing when
    they keep the shape, unless a Slice goes backwards.
    """

    name = "forward-kept-shape"
    anchors: ClassVar[tuple[str, ...]] = (
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
        *("Expand", "Slice", "Tile"),
    )
    depth = _LONGEST_CHAIN

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Kept | None:
        wanted = self._facts.shape(node.outputs[0])
        if wanted is None:
            return None
        for origin in _origins(node):
            if self._facts.shape(origin) == wanted:
                return _Kept(node, origin)
            if node.op_type not in _KEEP_ORDER:
                break
        return None

    def check(self, match: _Kept, context: Context) -> str | None:
        node = match.node
        if node.op_type == "Slice" and len(node.inputs) > 4 and node.inputs[4] is not None:
            steps = self._facts.integers(node.inputs[4])
            if steps is None or steps.constants is None or set(steps.constants) != {1}:
                return "the slice may go backwards"
        if not can_replace(node.outputs[0], match.origin):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: _Kept, rewriter: Rewriter) -> None:
        rewriter.replace(match.node.outputs[0], match.origin)


@dataclasses.dataclass
class _Target:
    node: ir.Node
    origin: ir.Value
    numbers: tuple[int, ...]


class FixTarget(RewriteRule[_Target]):
    """Give a Reshape or Expand a constant shape input instead of a computed one.

    Where the input of a Reshape has a shape to which no constant leads, an earlier value with the
    same elements in the same order may have a better one, and is reshaped instead.
    """

    name = "fix-target"
    anchors: ClassVar[tuple[str, ...]] = ("Reshape", "Expand")
    depth = _LONGEST_CHAIN

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts
        self._nonzero: frozenset[Atom] | None = None

    def match(self, node: ir.Node, context: Context) -> _Target | None:
        if self._nonzero is None:  # at the start, before a rewrite may take away what shows it
            self._nonzero = nonzero_sizes(context.model.graph, self._facts)
        given = node.inputs[1] if len(node.inputs) > 1 else None
        if given is None or is_constant(given) or given.producer() is None:
            return None  # nothing is computed
        source = node.inputs[0]
        target = self._facts.integers(given)
        if source is None or target is None or target.is_scalar:
            raise Refuse("the number of dimensions is only known when the model runs")
        if node.op_type == "Expand":
            return _Target(node, source, expand_target(self._facts.shape(source), target.elements))
        # The names of sizes in a function are its own.
        nonzero = frozenset() if context.in_function(node) else self._nonzero
        allowzero = int_attribute(node, "allowzero", 0) == 1
        try:
            shape = self._facts.shape(source)
            return _Target(node, source, reshape_target(shape, target.elements, allowzero, nonzero))
        except Refuse:
            earlier = self._from_earlier(node, nonzero)
            if earlier is None:
                raise
            return earlier

    def _from_earlier(self, node: ir.Node, nonzero: frozenset[Atom]) -> _Target | None:
        wanted = self._facts.shape(node.outputs[0])
        if wanted is None:
            return None
        for origin in list(_origins(node))[1:]:
            source = self._facts.shape(origin)
            try:
                return _Target(node, origin, reshape_target(source, wanted, True, nonzero))
            except Refuse:
                continue
        return None

    def rewrite(self, match: _Target, rewriter: Rewriter) -> None:
        numbers = np.array(match.numbers, dtype=np.int64)
        name = f"{match.node.outputs[0].name}_shape"
        if "allowzero" in match.node.attributes:
            rewriter.set_attribute(match.node, "allowzero", None)
        rewriter.replace_input(match.node, 1, rewriter.initializer(numbers, name))
        if match.origin is not match.node.inputs[0]:
            rewriter.replace_input(match.node, 0, match.origin)
