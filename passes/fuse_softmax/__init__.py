"""Find Softmax and LogSoftmax that are spelled out, and use the operators well.

With m the maximum of x along the last axis:

- ``exp(x - m) / sum(exp(x - m))`` along that axis is Softmax(x);
- ``log(softmax(x))`` and ``(x - m) - log(sum(exp(x - m)))`` are LogSoftmax(x);
- ``exp(logsoftmax(x))`` is Softmax(x);
- along an axis before several others, those are flattened around the operator: see
  `FlattenSoftmax`.

Exact, up to rounding, except that ``log(softmax(x))`` is -inf where the softmax underflows to 0
(100 below the maximum) and LogSoftmax gives the number.

Left alone: spelled along any axis but the last, since operators before opset 13 flatten there and
newer ones gain nothing over the spelling in ONNX Runtime 1.32 on CPU; ``exp(x) / sum(exp(x))``,
which overflows where Softmax does not; bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import axes, int_attribute
from onnxopt.analysis.values import has_one_use, rank
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule

from ..shared.spellings import in_the_way, made_by
from ..shared.targets import not_worth
from .layout import FlattenSoftmax

__all__ = ["FuseSoftmax"]


@dataclasses.dataclass(frozen=True)
class _Spelled:
    """``nodes`` (the anchor first) compute from ``x``, along the axes of ``reductions``."""

    x: ir.Value
    nodes: tuple[ir.Node, ...]
    reductions: tuple[ir.Node, ...]


class _FuseAlongLastAxis(RewriteRule[_Spelled]):
    """What both formulas share: all reductions run along the last axis and keep it."""

    operator: ClassVar[str]

    def check(self, match: _Spelled, context: Context) -> str | None:
        size = rank(match.x)
        for node in match.reductions:
            if int_attribute(node, "keepdims", 1) != 1:
                return "a reduction drops its axis"
            along = axes(node)
            if along is None or len(along) != 1:
                return "a reduction is not along one axis"
            if along[0] != -1 and size is None:
                return "the rank is unknown"
            if along[0] not in (-1, None if size is None else size - 1):
                return "not along the last axis"
        if context.opset(match.nodes[0]) < 11 and size is None:
            return "the rank is unknown"
        return not_worth(self.operator, match.x, context, match.nodes[0]) or in_the_way(
            match.nodes, match.x
        )

    def rewrite(self, match: _Spelled, rewriter: Rewriter) -> None:
        old, size = match.nodes[0].outputs[0], rank(match.x)
        axis = -1
        if rewriter.context.opset(match.nodes[0]) < 11:  # no negative axes yet
            assert size is not None
            axis = size - 1
        rewriter.replace(old, rewriter.op(self.operator, [match.x], {"axis": axis}, like=old))


def _shifted_exponentials(
    total: ir.Value | None,
) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node] | None:
    """``(sum, exp, sub, max)`` nodes of ``sum(exp(x - max(x)))``.

    Raises:
        Refuse: When no maximum is subtracted.
    """
    reduce_sum = made_by(total, "ReduceSum")
    exponential = None if reduce_sum is None else made_by(reduce_sum.inputs[0], "Exp")
    if reduce_sum is None or exponential is None:
        return None
    sub = made_by(exponential.inputs[0], "Sub")
    maximum = None if sub is None else made_by(sub.inputs[1], "ReduceMax")
    if sub is None or maximum is None or maximum.inputs[0] is not sub.inputs[0]:
        raise Refuse("it overflows where the operator does not: no maximum is subtracted")
    return reduce_sum, exponential, sub, maximum


class _FuseSoftmax(_FuseAlongLastAxis):
    """``exp(x - max(x)) / sum(exp(x - max(x)))``, also times the reciprocal of the sum."""

    name = "fuse-softmax"
    operator = "Softmax"
    anchors: ClassVar[tuple[str, ...]] = ("Div", "Mul")
    depth = 5

    def match(self, node: ir.Node, context: Context) -> _Spelled | None:
        for numerator, denominator in self._fractions(node):
            total = denominator
            nodes = [node]
            if node.op_type == "Mul":
                reciprocal = made_by(denominator, "Reciprocal")
                if reciprocal is None:
                    continue
                nodes.append(reciprocal)
                total = reciprocal.inputs[0]
            reduce_sum = made_by(total, "ReduceSum")
            if reduce_sum is None or reduce_sum.inputs[0] is not numerator:
                continue
            found = _shifted_exponentials(total)
            if found is not None and found[2].inputs[0] is not None:
                x = found[2].inputs[0]
                return _Spelled(x, (*nodes, *found), (found[0], found[3]))
        return None

    @staticmethod
    def _fractions(node: ir.Node) -> list[Sequence[ir.Value | None]]:
        return [node.inputs] if node.op_type == "Div" else [node.inputs, node.inputs[::-1]]


class _FuseSpelledLogSoftmax(_FuseAlongLastAxis):
    """``(x - max(x)) - log(sum(exp(x - max(x))))``."""

    name = "fuse-spelled-log-softmax"
    operator = "LogSoftmax"
    anchors: ClassVar[tuple[str, ...]] = ("Sub",)
    depth = 5

    def match(self, node: ir.Node, context: Context) -> _Spelled | None:
        logarithm = made_by(node.inputs[1], "Log")
        sub = made_by(node.inputs[0], "Sub")
        if logarithm is None or sub is None:
            return None
        found = _shifted_exponentials(logarithm.inputs[0])
        if found is None or found[2] is not sub or sub.inputs[0] is None:
            return None
        return _Spelled(sub.inputs[0], (node, logarithm, *found), (found[0], found[3]))


class _FuseLogOfSoftmax(RewriteRule[tuple[ir.Node, ir.Node]]):
    """``log(softmax(x))`` is LogSoftmax(x) along the same axis, and ``exp(logsoftmax(x))`` Softmax.

    Both operators mean the same by their axis in every opset.
    """

    name = "fuse-log-of-softmax"
    anchors: ClassVar[tuple[str, ...]] = ("Log", "Exp")
    depth = 1

    _RESULT: ClassVar[dict[str, str]] = {"Log": "LogSoftmax", "Exp": "Softmax"}

    def match(self, node: ir.Node, context: Context) -> tuple[ir.Node, ir.Node] | None:
        inner = made_by(node.inputs[0], "Softmax" if node.op_type == "Log" else "LogSoftmax")
        return None if inner is None or inner.inputs[0] is None else (node, inner)

    def check(self, match: tuple[ir.Node, ir.Node], context: Context) -> str | None:
        node, inner = match
        x = inner.inputs[0]
        assert x is not None
        if not has_one_use(inner.outputs[0]):
            return "an intermediate result is used elsewhere"
        return not_worth(self._RESULT[node.op_type], x, context, node)

    def rewrite(self, match: tuple[ir.Node, ir.Node], rewriter: Rewriter) -> None:
        node, inner = match
        old = node.outputs[0]
        new = rewriter.op(
            self._RESULT[node.op_type], [inner.inputs[0]], dict(inner.attributes), like=old
        )
        rewriter.replace(old, new)


class FuseSoftmax(RewritePass):
    """Use Softmax and LogSoftmax where they are spelled out."""

    name = "fuse-softmax"

    def rules(self) -> list[RewriteRule[Any]]:
        """One rule for each formula, and one for the shape."""
        return [_FuseSoftmax(), _FuseSpelledLogSoftmax(), _FuseLogOfSoftmax(), FlattenSoftmax()]
