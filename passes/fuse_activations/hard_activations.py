"""HardSigmoid and HardSwish from clipped lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import clip_bounds, float_attribute
from onnxopt.analysis.values import has_one_use
from onnxopt.rewriting import Context, Rewriter, RewriteRule

from ..shared.spellings import close, in_the_way, leads_to, lines, made_by, product, split_constant
from ..shared.targets import available, not_worth

__all__ = ["FuseHardSigmoid", "FuseHardSwish"]

#: HardSigmoid and Mul, the longer of the results.
_RESULT_NODES = 2
#: A lower and an upper bound, and what an exporter may say twice.
_MOST_BOUNDS = 4
_BOUNDS = ("Clip", "Relu", "Min", "Max")
#: How far 6 times 1/6 may be from 1, by element type.
_ROUNDING = {ir.DataType.FLOAT: 5e-7, ir.DataType.FLOAT16: 5e-4}


@dataclasses.dataclass(frozen=True)
class _ClippedLine:
    """``value = min(max(slope * source + shift, low), high)``, spelled by ``nodes``."""

    source: ir.Value
    slope: float
    shift: float
    low: float
    high: float
    nodes: tuple[ir.Node, ...]

    def scaled(self, slope: float, shift: float, nodes: tuple[ir.Node, ...]) -> _ClippedLine:
        """``slope * value + shift`` as a clipped line again; a negative slope swaps the bounds."""
        low, high = sorted((slope * self.low + shift, slope * self.high + shift))
        if abs(low) <= self._rounding() * abs(shift):
            low = 0.0  # cancelled, up to the rounding of the slope
        return _ClippedLine(
            self.source,
            slope * self.slope,
            slope * self.shift + shift,
            low,
            high,
            (*nodes, *self.nodes),
        )

    def _rounding(self) -> float:
        return _ROUNDING.get(self.source.dtype, 0.0) if self.source.dtype is not None else 0.0

    def is_hard_sigmoid(self) -> bool:
        """Whether it is HardSigmoid with some alpha (the slope) and beta (the shift).

        A bound that is nearly 0 or 1 is not: it keeps a logarithm finite.
        """
        return self.low == 0.0 and abs(self.high - 1.0) <= self._rounding()

    def is_hard_swish_gate(self) -> bool:
        """Whether x times it is HardSwish."""
        dtype = self.source.dtype
        return close(self.slope, 1 / 6, dtype) and close(self.shift, 0.5, dtype)


def _clipped_lines(value: ir.Value) -> Iterator[_ClippedLine]:
    """The value as a clipped line of what the clip reads, of what that is made of, and so on."""
    if not leads_to(value, "HardSigmoid", *_BOUNDS):
        return
    for outer in lines(value):
        node = made_by(outer.source, "HardSigmoid")
        if node is not None and node.inputs[0] is not None:
            alpha = float_attribute(node, "alpha", 0.2)
            beta = float_attribute(node, "beta", 0.5)
            clip = _ClippedLine(node.inputs[0], alpha, beta, 0.0, 1.0, (node,))
        else:
            bounded = _bounded(outer.source)
            if bounded is None:
                continue
            clip = bounded
        clip = clip.scaled(outer.slope, outer.shift, outer.nodes)
        for inner in lines(clip.source):
            yield dataclasses.replace(
                clip,
                source=inner.source,
                slope=clip.slope * inner.slope,
                shift=clip.slope * inner.shift + clip.shift,
                nodes=(*clip.nodes, *inner.nodes),
            )
        return


def _bounded(value: ir.Value) -> _ClippedLine | None:
    """The value as bounds on another, by Clip, Relu, or Min and Max with numbers, nested."""
    low, high = -math.inf, math.inf
    nodes: list[ir.Node] = []
    for _ in range(_MOST_BOUNDS):
        node = made_by(value, *_BOUNDS)
        if node is None:
            break
        below, above, source = -math.inf, math.inf, node.inputs[0]
        if node.op_type == "Clip":
            bounds = clip_bounds(node)
            below = below if bounds[0] is None else bounds[0]
            above = above if bounds[1] is None else bounds[1]
        elif node.op_type == "Relu":
            below = 0.0
        else:
            split = split_constant(node)
            if split is None:
                break
            source, number = split
            below, above = (below, number) if node.op_type == "Min" else (number, above)
        if source is None or not below <= above:
            break
        # What was collected so far acts on the result of this node.
        low, high = min(max(below, low), high), min(max(above, low), high)
        nodes.append(node)
        value = source
    if not nodes or not (math.isfinite(low) and math.isfinite(high) and low < high):
        return None
    return _ClippedLine(value, 1.0, 0.0, low, high, tuple(nodes))


class FuseHardSigmoid(RewriteRule[_ClippedLine]):
    """``min(max(a * x + b, 0), 1)`` is HardSigmoid(x, alpha=a, beta=b)."""

    name = "fuse-hard-sigmoid"
    anchors: ClassVar[tuple[str, ...]] = ("Clip", "Min", "Max", "Add", "Sub", "Mul", "Div")
    depth = 7

    def match(self, node: ir.Node, context: Context) -> _ClippedLine | None:
        found = None
        for line in _clipped_lines(node.outputs[0]):
            if any(each.op_type == "HardSigmoid" for each in line.nodes):
                return None
            if found is not None and not has_one_use(found.source):
                break
            found = line
        if found is None or len(found.nodes) == 1:
            return None
        return found if found.is_hard_sigmoid() else None

    def check(self, match: _ClippedLine, context: Context) -> str | None:
        return not_worth("HardSigmoid", match.source, context, match.nodes[0]) or in_the_way(
            match.nodes, match.source
        )

    def rewrite(self, match: _ClippedLine, rewriter: Rewriter) -> None:
        old = match.nodes[0].outputs[0]
        attributes = {"alpha": match.slope, "beta": match.shift}
        rewriter.replace(old, rewriter.op("HardSigmoid", [match.source], attributes, like=old))


@dataclasses.dataclass(frozen=True)
class _Gated:
    x: ir.Value
    gate: _ClippedLine
    nodes: tuple[ir.Node, ...]


class FuseHardSwish(RewriteRule[_Gated]):
    """``x * min(max(x / 6 + 1/2, 0), 1)`` is HardSwish(x), or x * HardSigmoid(x).

    The second form is for opsets without HardSwish (before 14) and for other slopes and shifts; the
    runtime computes HardSwish the same way.
    """

    name = "fuse-hard-swish"
    anchors: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    depth = 8

    def match(self, node: ir.Node, context: Context) -> _Gated | None:
        whole = product(node.outputs[0])
        if whole is None:
            return None
        for factor, other in whole.orders():
            for own in lines(factor):
                if own.shift != 0:
                    break
                for gate in _clipped_lines(other):
                    if gate.source is not own.source:
                        continue
                    gate = gate.scaled(whole.scale * own.slope, 0.0, ())
                    nodes = (*whole.nodes, *own.nodes, *gate.nodes)
                    found = _Gated(own.source, gate, nodes)
                    return found if self._gains(found, context) else None
        return None

    def _gains(self, match: _Gated, context: Context) -> bool:
        if not match.gate.is_hard_sigmoid():
            return False
        return len(match.nodes) > _RESULT_NODES or self._whole(match, context)

    @staticmethod
    def _whole(match: _Gated, context: Context) -> bool:
        return match.gate.is_hard_swish_gate() and available("HardSwish", context, match.nodes[0])

    def check(self, match: _Gated, context: Context) -> str | None:
        return not_worth("HardSigmoid", match.x, context, match.nodes[0]) or in_the_way(
            match.nodes, match.x
        )

    def rewrite(self, match: _Gated, rewriter: Rewriter) -> None:
        old = match.nodes[0].outputs[0]
        if self._whole(match, rewriter.context):
            new = rewriter.op("HardSwish", [match.x], like=old)
        else:
            attributes = {"alpha": match.gate.slope, "beta": match.gate.shift}
            gate = rewriter.op("HardSigmoid", [match.x], attributes, like=old)
            new = rewriter.op("Mul", [match.x, gate], like=old)
        rewriter.replace(old, new)
