"""Rules of fold-shapes for operators that take a computed shape: Reshape, Expand, Slice, Tile."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.reshape_targets import expand_target, reshape_target
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.values import constant_array, is_constant
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule, can_replace

__all__ = ["FixTarget", "ForwardKeptShape"]


class ForwardKeptShape(RewriteRule[ir.Node]):
    """Let readers of a Reshape, Expand, Slice, Tile or Flatten that keeps the shape read its input.

    Each of them keeps the order of the elements, so that one that keeps the shape does nothing.
    """

    name = "forward-kept-shape"
    anchors: ClassVar[tuple[str, ...]] = ("Reshape", "Expand", "Slice", "Tile", "Flatten")

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        before = self._facts.shape(node.inputs[0])
        if before is None or before != self._facts.shape(node.outputs[0]):
            return None
        return node

    def check(self, match: ir.Node, context: Context) -> str | None:
        if match.op_type == "Slice" and len(match.inputs) > 4 and match.inputs[4] is not None:
            steps = constant_array(match.inputs[4])
            if steps is None or not (steps == 1).all():
                return "the slice may reverse the order"
        source = match.inputs[0]
        assert source is not None
        if not can_replace(match.outputs[0], source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        source = match.inputs[0]
        assert source is not None
        rewriter.replace(match.outputs[0], source)


@dataclasses.dataclass
class _Target:
    node: ir.Node
    numbers: tuple[int, ...]


class FixTarget(RewriteRule[_Target]):
    """Give a Reshape or Expand a constant shape input instead of a computed one."""

    name = "fix-target"
    anchors: ClassVar[tuple[str, ...]] = ("Reshape", "Expand")

    def __init__(self, facts: SymbolicFacts) -> None:
        self._facts = facts

    def match(self, node: ir.Node, context: Context) -> _Target | None:
        if len(node.inputs) < 2 or node.inputs[1] is None or is_constant(node.inputs[1]):
            return None
        target = self._facts.integers(node.inputs[1])
        if target is None or target.is_scalar:
            raise Refuse("the number of dimensions is only known when the model runs")
        source = self._facts.shape(node.inputs[0])
        if node.op_type == "Expand":
            return _Target(node, expand_target(source, target.elements))
        allowzero = int_attribute(node, "allowzero", 0) == 1
        return _Target(node, reshape_target(source, target.elements, allowzero))

    def rewrite(self, match: _Target, rewriter: Rewriter) -> None:
        numbers = np.array(match.numbers, dtype=np.int64)
        name = f"{match.node.outputs[0].name}_shape"
        if "allowzero" in match.node.attributes:
            rewriter.set_attribute(match.node, "allowzero", None)
        rewriter.replace_input(match.node, 1, rewriter.initializer(numbers, name))
