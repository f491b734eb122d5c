"""Relu, LeakyRelu, PRelu, ThresholdedRelu, Elu and Abs from Where, Max or two Relus.

ONNX Runtime's Where on CPU runs at a tenth to a thirtieth of the speed of these operators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from onnxopt.analysis.values import constant_array, dims, rank
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule

from ..shared.spellings import close, in_the_way, lines, made_by, scalar
from ..shared.targets import not_worth

__all__ = ["FuseMax", "FuseRelus", "FuseWhere"]


@dataclasses.dataclass(frozen=True)
class _Activation:
    """``op_type(x, *more)`` with attributes, spelled by ``nodes``; the first is the anchor."""

    op_type: str
    x: ir.Value
    nodes: tuple[ir.Node, ...]
    attributes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    slope: ir.Value | None = None


class _FuseActivation(RewriteRule[_Activation]):
    """What the rules of this file share once they have found an activation."""

    def check(self, match: _Activation, context: Context) -> str | None:
        reason = not_worth(match.op_type, match.x, context, match.nodes[0])
        if reason is None and match.slope is not None:
            reason = _slope_widens(match.slope, match.x)
        return reason or in_the_way(match.nodes, match.x)

    def rewrite(self, match: _Activation, rewriter: Rewriter) -> None:
        old = match.nodes[0].outputs[0]
        inputs = [match.x] if match.slope is None else [match.x, match.slope]
        rewriter.replace(old, rewriter.op(match.op_type, inputs, match.attributes, like=old))


class FuseWhere(_FuseActivation):
    """``Where(x > t, x, f(x))`` is Relu, LeakyRelu, PRelu, Elu, Abs or ThresholdedRelu.

    All comparisons, both ways round, if NaN becomes the same: no comparison holds for it, so the
    spelling gives its last operand, where Relu gives NaN and ThresholdedRelu 0.
    """

    name = "fuse-where-activation"
    anchors: ClassVar[tuple[str, ...]] = ("Where",)
    depth = 5

    def match(self, node: ir.Node, context: Context) -> _Activation | None:
        condition, chosen, other = node.inputs
        compare = made_by(condition, "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
        if compare is None or chosen is None or other is None:
            return None
        left, right = compare.inputs
        greater = compare.op_type.startswith("Greater")
        if scalar(left) is not None:
            left, right, greater = right, left, not greater
        threshold = scalar(right)
        if left is None or threshold is None:
            return None
        above, below = (chosen, other) if greater else (other, chosen)
        if above is not left:
            return None
        nodes = (node, compare)
        # What is true at the threshold itself: the comparison, or its opposite.
        equal_is_above = compare.op_type.endswith("OrEqual") == greater
        is_zero = scalar(below) == 0
        if threshold != 0:
            if is_zero and not equal_is_above:
                _require_same_for_nan(other is below)
                return _Activation("ThresholdedRelu", left, nodes, {"alpha": threshold})
            return None
        if is_zero:
            _require_same_for_nan(other is above)
            return _Activation("Relu", left, nodes)
        return _below_zero(left, below, nodes)


def _require_same_for_nan(same: bool) -> None:
    if not same:
        raise Refuse("NaN would become something else")


def _below_zero(x: ir.Value, below: ir.Value, nodes: tuple[ir.Node, ...]) -> _Activation | None:
    """The activation that is x above zero and ``below`` (a value) where x is negative."""
    for line in lines(below):
        spelled = (*nodes, *line.nodes)
        if line.source is x and line.shift == 0 and line.nodes:
            return _linear_below(x, line.slope, spelled)
        exponential = made_by(line.source, "Exp")
        if exponential is not None and exponential.inputs[0] is x:
            if close(line.shift / line.slope, -1.0, x.dtype):
                return _Activation("Elu", x, (*spelled, exponential), {"alpha": line.slope})
            return None
    scaled = made_by(below, "Mul")
    if scaled is None:
        return None
    for own, slope in (scaled.inputs, scaled.inputs[::-1]):
        if own is x and slope is not None and constant_array(slope) is not None:
            return _Activation("PRelu", x, (*nodes, scaled), slope=slope)
    return None


def _linear_below(x: ir.Value, slope: float, nodes: tuple[ir.Node, ...]) -> _Activation:
    if slope == -1.0:
        return _Activation("Abs", x, nodes)
    return _Activation("LeakyRelu", x, nodes, {"alpha": slope})


class FuseMax(_FuseActivation):
    """``max(x, a * x)`` is LeakyRelu for 0 < a < 1, and Abs for a = -1."""

    name = "fuse-max-activation"
    anchors: ClassVar[tuple[str, ...]] = ("Max",)
    depth = 2

    def match(self, node: ir.Node, context: Context) -> _Activation | None:
        if len(node.inputs) != 2:
            return None
        for x, other in (node.inputs, node.inputs[::-1]):
            if x is None or other is None:
                return None
            for line in lines(other):
                if line.source is x and line.shift == 0 and line.nodes:
                    if 0 < line.slope < 1 or line.slope == -1.0:
                        return _linear_below(x, line.slope, (node, *line.nodes))
                    return None
        return None


class FuseRelus(_FuseActivation):
    """``Relu(x) - a * Relu(-x)`` is LeakyRelu(x, alpha=a), or Abs for a = -1."""

    name = "fuse-two-relus"
    anchors: ClassVar[tuple[str, ...]] = ("Sub", "Add")
    depth = 4

    def match(self, node: ir.Node, context: Context) -> _Activation | None:
        if node.op_type == "Sub":
            return self._of(node, node.inputs[0], node.inputs[1], -1.0)
        first, second = node.inputs
        return self._of(node, first, second, 1.0) or self._of(node, second, first, 1.0)

    @staticmethod
    def _of(
        node: ir.Node, upper: ir.Value | None, lower: ir.Value | None, sign: float
    ) -> _Activation | None:
        """The activation ``upper + sign * lower``, if they are Relu(x) and a * Relu(-x)."""
        positive = made_by(upper, "Relu")
        if positive is None or lower is None:
            return None
        x = positive.inputs[0]
        if x is None:
            return None
        for line in lines(lower):
            negative = made_by(line.source, "Relu")
            if negative is None:
                continue
            if line.shift != 0 or negative.inputs[0] is None:
                return None
            for inner in lines(negative.inputs[0]):
                if inner.source is x and inner.shift == 0 and inner.slope < 0:
                    # a * Relu(-c * x) = a * c * Relu(-x), and that is -x below zero.
                    slope = sign * line.slope * inner.slope
                    nodes = (node, positive, *line.nodes, negative, *inner.nodes)
                    return _linear_below(x, slope, nodes)
        return None


def _slope_widens(slope: ir.Value, x: ir.Value) -> str | None:
    """Why PRelu cannot take this slope: it must broadcast to x, not the other way round."""
    own, theirs = dims(x), dims(slope)
    if own is None or theirs is None or rank(x) is None:
        return "the rank is unknown"
    if len(theirs) > len(own):
        return "the slope widens the result"
    for mine, its in zip(own[::-1], theirs[::-1], strict=False):
        if its != 1 and mine != its:
            return "the slope may widen the result"
    return None
