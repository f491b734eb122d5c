"""Spell activations for which ONNX Runtime has a slow kernel in operators that it runs faster.

- PRelu with one slope for all elements: ``LeakyRelu``;
- PRelu with slopes a that are all above 0 and at most 1: ``max(x, a*x)``;
- Mish, as an operator or as ``x * tanh(softplus(x))``: with ``w = exp(min(x, 20))`` and
  ``n = w * (w + 2)``, it is ``x * (n / (n + 2))``, since
  ``tanh(log(1 + w)) = ((1 + w)^2 - 1) / ((1 + w)^2 + 1)``; above 20 the quotient is 1 in float32.

Exact: the first two give the same bits but for the sign of a zero, the third is off by five units
in the last place at most. Infinities and NaN go through alike.

ONNX Runtime 1.32 on CPU, one thread: LeakyRelu and Max take 1/19 and 1/11 of the time of PRelu on
200,000 elements, and the whole of two convolutions with it between gets 1.45x and 1.38x; Mish gets
7.5x on 100,000 elements and 3.5x on 2,000. On a few thousand elements Max gains nothing, so PRelu
of known small size is left alone, as are slopes that are computed or that widen the result, and
other types than float32. Max and Mish take more nodes, some tens or hundreds of bytes each; where
the whole file gets larger by that, `optimize` runs the pass again with ``grow=false``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_array, dims, rank
from onnxopt.pass_contract import Pass
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule

from .shared.spellings import in_the_way, made_by

__all__ = ["ExpandActivations"]

#: PRelu of fewer elements for each sample is left alone.
_FEWEST_ELEMENTS = 8192
#: Above this, tanh(softplus(x)) is 1 in float32.
_MISH_SATURATED = 20.0


@dataclasses.dataclass
class _Sloped:
    node: ir.Node
    x: ir.Value
    slope: ir.Value
    numbers: np.ndarray[Any, Any]

    @property
    def alpha(self) -> float | None:
        """The slope that all elements have, or None."""
        first = float(self.numbers.reshape(-1)[0])
        return first if bool((self.numbers == first).all()) else None


class _PReluRule(RewriteRule[_Sloped]):
    """PRelu with constant slopes."""

    anchors: ClassVar[tuple[str, ...]] = ("PRelu",)
    depth = 1
    uniform: ClassVar[bool]

    def match(self, node: ir.Node, context: Context) -> _Sloped | None:
        x, slope = node.inputs
        numbers = constant_array(slope)
        if x is None or slope is None or numbers is None or not numbers.size:
            return None
        found = _Sloped(node, x, slope, numbers)
        return found if (found.alpha is not None) == self.uniform else None

    def check(self, match: _Sloped, context: Context) -> str | None:
        if match.x.dtype != ir.DataType.FLOAT:
            return "only float32 is known to gain"
        if _widens(match.slope, match.x):
            return "the slope may widen the result"
        return None


class _UniformPRelu(_PReluRule):
    """PRelu as LeakyRelu."""

    name = "prelu-to-leaky-relu"
    uniform = True

    def check(self, match: _Sloped, context: Context) -> str | None:
        if match.alpha is None or not math.isfinite(match.alpha):
            return "the slope is not finite"
        return super().check(match, context)

    def rewrite(self, match: _Sloped, rewriter: Rewriter) -> None:
        old, alpha = match.node.outputs[0], match.alpha
        rewriter.replace(old, rewriter.op("LeakyRelu", [match.x], {"alpha": alpha}, like=old))


class _SlopedPRelu(_PReluRule):
    """PRelu as the larger one of x and a*x."""

    name = "prelu-to-max"
    uniform = False

    def check(self, match: _Sloped, context: Context) -> str | None:
        if not bool(((match.numbers > 0) & (match.numbers <= 1)).all()):
            return "a slope is not between 0 and 1"
        elements = [dim for dim in (dims(match.x) or ())[1:] if isinstance(dim, int)]
        if len(elements) + 1 == rank(match.x) and math.prod(elements) < _FEWEST_ELEMENTS:
            return "it is too small to gain"
        return super().check(match, context)

    def rewrite(self, match: _Sloped, rewriter: Rewriter) -> None:
        old = match.node.outputs[0]
        scaled = rewriter.op("Mul", [match.x, match.slope], like=old)
        rewriter.replace(old, rewriter.op("Max", [match.x, scaled], like=old))


def _widens(slope: ir.Value, x: ir.Value) -> bool:
    """Whether a slope may give the result another shape than x has."""
    own, theirs = dims(x), dims(slope)
    if theirs == ():
        return False
    if own is None or theirs is None or len(theirs) > len(own):
        return True
    return any(its not in (1, mine) for mine, its in zip(own[::-1], theirs[::-1], strict=False))


@dataclasses.dataclass
class _Mish:
    x: ir.Value
    nodes: tuple[ir.Node, ...]


class _ExpandMish(RewriteRule[_Mish]):
    """Mish by one exponential instead of three."""

    name = "expand-mish"
    anchors: ClassVar[tuple[str, ...]] = ("Mish", "Mul")
    depth = 3

    def match(self, node: ir.Node, context: Context) -> _Mish | None:
        if node.op_type == "Mish":
            x = node.inputs[0]
            return None if x is None else _Mish(x, (node,))
        for x, factor in (node.inputs, node.inputs[::-1]):
            tanh = made_by(factor, "Tanh")
            softplus = made_by(tanh.inputs[0], "Softplus") if tanh is not None else None
            if tanh is not None and softplus is not None and softplus.inputs[0] is x:
                assert x is not None
                return _Mish(x, (node, tanh, softplus))
        return None

    def check(self, match: _Mish, context: Context) -> str | None:
        if match.x.dtype != ir.DataType.FLOAT:
            return "only float32 is known to gain"
        return in_the_way(match.nodes, match.x)

    def rewrite(self, match: _Mish, rewriter: Rewriter) -> None:
        old = match.nodes[0].outputs[0]
        top = rewriter.initializer(np.array(_MISH_SATURATED, np.float32), "saturated")
        two = rewriter.initializer(np.array(2, np.float32), "two")
        bounded = rewriter.op("Min", [match.x, top], like=old)
        power = rewriter.op("Exp", [bounded], like=old)
        more = rewriter.op("Add", [power, two], like=old)
        above = rewriter.op("Mul", [power, more], like=old)
        below = rewriter.op("Add", [above, two], like=old)
        share = rewriter.op("Div", [above, below], like=old)
        rewriter.replace(old, rewriter.op("Mul", [match.x, share], like=old))


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `ExpandActivations`.

    Attributes:
        grow: Whether to make the rewrites that take more nodes, too.
    """

    grow: bool = True


class ExpandActivations(RewritePass):
    """Spell activations in operators that the runtime is faster with."""

    name = "expand-activations"
    Options: ClassVar[type] = _Options

    def thrifty(self) -> Pass | None:
        """Make the rewrites that take no more nodes."""
        return ExpandActivations(_Options(grow=False)) if self.options.grow else None

    def rules(self) -> list[RewriteRule[Any]]:
        """One for each activation."""
        uniform: list[RewriteRule[Any]] = [_UniformPRelu()]
        return [*uniform, _SlopedPRelu(), _ExpandMish()] if self.options.grow else uniform
