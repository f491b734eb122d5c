"""Sigmoid, Tanh and Softsign from their formulas."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.rewriting import Context, Rewriter, RewriteRule

from ..shared.spellings import close, in_the_way, leads_to, lines, made_by, scalar, split_constant
from ..shared.targets import not_worth

__all__ = ["FuseSigmoid", "FuseSigmoidOrTanh", "FuseSoftsign"]


@dataclasses.dataclass(frozen=True)
class _Quotient:
    """``numerator * Sigmoid(scale * source)``; no numerator stands for 1."""

    numerator: ir.Value | None
    source: ir.Value
    scale: float
    nodes: tuple[ir.Node, ...]


class FuseSigmoid(RewriteRule[_Quotient]):
    """``c / (1 + exp(-a * x))`` is c * Sigmoid(a * x); c may be any value, x itself too.

    Exact where exp overflows too: 1 / inf is 0. ``exp(x) / (1 + exp(x))`` is not the same there.
    """

    name = "fuse-sigmoid"
    anchors: ClassVar[tuple[str, ...]] = ("Reciprocal", "Div")
    depth = 4

    def match(self, node: ir.Node, context: Context) -> _Quotient | None:
        numerator = None if node.op_type == "Reciprocal" else node.inputs[0]
        add = made_by(node.inputs[-1], "Add")
        split = None if add is None else split_constant(add)
        if add is None or split is None or split[1] != 1.0:
            return None
        exponential = made_by(split[0], "Exp")
        if exponential is None or exponential.inputs[0] is None:
            return None
        if scalar(numerator) == 1.0:
            numerator = None
        found = None
        for line in lines(exponential.inputs[0]):
            if line.shift != 0:
                break
            nodes = (node, add, exponential, *line.nodes)
            found = _Quotient(numerator, line.source, -line.slope, nodes)
            if line.nodes:
                break
        return found

    def check(self, match: _Quotient, context: Context) -> str | None:
        return not_worth("Sigmoid", match.source, context, match.nodes[0]) or in_the_way(
            match.nodes, match.source
        )

    def rewrite(self, match: _Quotient, rewriter: Rewriter) -> None:
        old, x = match.nodes[0].outputs[0], match.source
        if match.scale == -1.0:
            x = rewriter.op("Neg", [x], like=x)
        elif match.scale != 1.0:
            assert x.dtype is not None
            scale = np.asarray(match.scale, x.dtype.numpy())
            x = rewriter.op("Mul", [x, rewriter.initializer(scale, "sigmoid_scale")], like=x)
        new = rewriter.op("Sigmoid", [x], like=x)
        if match.numerator is not None:
            new = rewriter.op("Mul", [match.numerator, new], like=old)
        rewriter.replace(old, new)


@dataclasses.dataclass(frozen=True)
class _Curve:
    op_type: str
    x: ir.Value
    nodes: tuple[ir.Node, ...]


class FuseSigmoidOrTanh(RewriteRule[_Curve]):
    """``(1 + tanh(x / 2)) / 2`` is Sigmoid(x), and ``2 * sigmoid(2 * x) - 1`` is Tanh(x)."""

    name = "fuse-sigmoid-or-tanh"
    anchors: ClassVar[tuple[str, ...]] = ("Add", "Sub", "Mul", "Div")
    depth = 5

    #: Operator inside, then slope and shift outside and slope inside, then what it is.
    _IDENTITIES: ClassVar[tuple[tuple[str, float, float, float, str], ...]] = (
        ("Tanh", 0.5, 0.5, 0.5, "Sigmoid"),
        ("Tanh", -0.5, 0.5, -0.5, "Sigmoid"),
        ("Sigmoid", 2.0, -1.0, 2.0, "Tanh"),
        ("Sigmoid", -2.0, 1.0, -2.0, "Tanh"),
    )

    def match(self, node: ir.Node, context: Context) -> _Curve | None:
        if not leads_to(node.outputs[0], "Tanh", "Sigmoid"):
            return None
        for outer in lines(node.outputs[0]):
            curve = made_by(outer.source, "Tanh", "Sigmoid")
            if curve is None:
                continue
            if curve.inputs[0] is None or not outer.nodes:
                return None
            for inner in lines(curve.inputs[0]):
                for op_type, slope, shift, scale, result in self._IDENTITIES:
                    dtype = inner.source.dtype
                    if (
                        curve.op_type == op_type
                        and close(outer.slope, slope, dtype)
                        and close(outer.shift, shift, dtype)
                        and close(inner.slope, scale, dtype)
                        and inner.shift == 0
                    ):
                        nodes = (*outer.nodes, curve, *inner.nodes)
                        return _Curve(result, inner.source, nodes)
            return None
        return None

    def check(self, match: _Curve, context: Context) -> str | None:
        return not_worth(match.op_type, match.x, context, match.nodes[0]) or in_the_way(
            match.nodes, match.x
        )

    def rewrite(self, match: _Curve, rewriter: Rewriter) -> None:
        old = match.nodes[0].outputs[0]
        rewriter.replace(old, rewriter.op(match.op_type, [match.x], like=old))


class FuseSoftsign(RewriteRule[_Curve]):
    """``x / (1 + |x|)`` is Softsign(x)."""

    name = "fuse-softsign"
    anchors: ClassVar[tuple[str, ...]] = ("Div",)
    depth = 3

    def match(self, node: ir.Node, context: Context) -> _Curve | None:
        x = node.inputs[0]
        add = made_by(node.inputs[1], "Add")
        split = None if add is None else split_constant(add)
        if x is None or add is None or split is None or split[1] != 1.0:
            return None
        absolute = made_by(split[0], "Abs")
        if absolute is None or absolute.inputs[0] is not x:
            return None
        return _Curve("Softsign", x, (node, add, absolute))

    check = FuseSigmoidOrTanh.check
    rewrite = FuseSigmoidOrTanh.rewrite
