"""Merge and remove Clip, Relu and Min or Max with a constant.

Each of these operators moves a number to the nearest point of an interval: Relu to [0, inf),
``Max(x, c)`` to [c, inf), ``Min(x, c)`` to (-inf, c], Clip to [min, max] (or to the one point max,
where min > max). With ``f`` and ``g`` of that kind, ``g(f(x))`` is of that kind again, with the
interval [g(f(-inf)), g(f(inf))]: where the two intervals meet it is their intersection, and
otherwise one point. So two nodes become one Clip or Relu; if the second changes nothing that the
first lets through, or that its input can be (a Sigmoid never leaves [0, 1]), it goes.

Exact for every number: a bound that Clip leaves out is the largest finite number, not infinity, so
``Clip(x, 0)`` is not Relu, and all these operators hand NaN on in ONNX Runtime. For that reason
even an interval of one point stays a Clip, and is not folded into a constant.

Left alone: bounds that are only known when the model runs or are NaN, a Min or Max that may
broadcast its input up, element types for which the runtime has no Clip, and a first node that is
read elsewhere (its work would be done twice).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_scalar, has_one_use, is_float
from onnxopt.rewriting import (
    Context,
    RewritePass,
    Rewriter,
    RewriteRule,
    can_replace,
)

from .clamps import (
    INFINITY,
    OPERATORS,
    TYPES,
    TYPES_BEFORE_12,
    Clamp,
    Interval,
    clamp_of,
    finite_bounds,
)
from .value_ranges import MOST_STEPS, may_have_range, value_range

__all__ = ["SimplifyClips"]


@dataclasses.dataclass(frozen=True)
class _Pair:
    first: Clamp
    second: Clamp

    @property
    def merged(self) -> Interval:
        return self.first.interval.then(self.second.interval)


def _expressible(interval: Interval, dtype: ir.DataType, opset: int) -> str | None:
    """Why a clamp to the interval cannot be written at this opset, or None when it can."""
    if interval == Interval(0, INFINITY):
        return None
    allowed = TYPES if opset >= 12 else TYPES_BEFORE_12
    if opset >= 13:
        allowed = allowed | {ir.DataType.BFLOAT16}
    return None if dtype in allowed else "Clip does not take the element type at this opset"


def _write(
    clamp: Interval, source: ir.Value, like: ir.Value, opset: int, rewriter: Rewriter
) -> ir.Value:
    """Insert the node that moves ``source`` into the interval."""
    assert source.dtype is not None
    if clamp == Interval(0, INFINITY):
        return rewriter.op("Relu", [source], like=like)
    least, greatest = finite_bounds(source.dtype)
    low = None if clamp.low == least else clamp.low
    high = None if clamp.high == greatest else clamp.high
    if opset < 11:
        bounds = {"min": low, "max": high}
        given = {name: float(bound) for name, bound in bounds.items() if bound is not None}
        return rewriter.op("Clip", [source], given, like=like)
    inputs: list[ir.Value | None] = [source]
    for bound, name in ((low, "min"), (high, "max")):
        if bound is None:
            inputs.append(None)
            continue
        array = np.array(bound, dtype=source.dtype.numpy())
        inputs.append(rewriter.initializer(array, f"{like.name}_{name}", like=source))
    while inputs[-1] is None:
        inputs.pop()
    return rewriter.op("Clip", inputs, like=like)


class _MergeClamps(RewriteRule[_Pair]):
    """One Clip or Relu in place of two clamps."""

    name = "merge-clamps"
    anchors: ClassVar[tuple[str, ...]] = OPERATORS

    def match(self, node: ir.Node, context: Context) -> _Pair | None:
        if not any(
            value is not None
            and (producer := value.producer()) is not None
            and producer.op_type in OPERATORS
            for value in node.inputs
        ):
            return None
        second = clamp_of(node, context)
        producer = second.source.producer() if second is not None else None
        if second is None or producer is None:
            return None
        first = clamp_of(producer, context)
        return None if first is None else _Pair(first, second)

    def check(self, match: _Pair, context: Context) -> str | None:
        first, second = match.first, match.second
        if match.merged == first.interval and can_replace(second.node.outputs[0], second.source):
            return None
        if not has_one_use(second.source):
            return "the first result is read elsewhere"
        if match.merged == second.interval:
            return None
        assert first.source.dtype is not None
        return _expressible(match.merged, first.source.dtype, context.opset(second.node))

    def rewrite(self, match: _Pair, rewriter: Rewriter) -> None:
        first, second = match.first, match.second
        output = second.node.outputs[0]
        if match.merged == first.interval and can_replace(output, second.source):
            rewriter.replace(output, second.source)
            return
        if match.merged == second.interval:
            index = list(second.node.inputs).index(second.source)
            rewriter.replace_input(second.node, index, first.source)
            return
        opset = rewriter.context.opset(second.node)
        rewriter.replace(output, _write(match.merged, first.source, output, opset, rewriter))


class _ForwardWithinRange(RewriteRule[Clamp]):
    """Drop a clamp to an interval that its input never leaves."""

    name = "drop-clamp-without-effect"
    anchors: ClassVar[tuple[str, ...]] = OPERATORS
    depth: ClassVar[int] = MOST_STEPS + 1

    def match(self, node: ir.Node, context: Context) -> Clamp | None:
        if not any(
            value is not None
            and (producer := value.producer()) is not None
            and may_have_range(producer)
            for value in node.inputs
        ):
            return None
        clamp = clamp_of(node, context)
        if clamp is None or not is_float(clamp.source):
            return None
        bounds = value_range(clamp.source, context, MOST_STEPS)
        if bounds is None:
            return None
        low, high = bounds
        inside = clamp.interval.low <= low and high <= clamp.interval.high
        return clamp if inside else None

    def check(self, match: Clamp, context: Context) -> str | None:
        if not can_replace(match.node.outputs[0], match.source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: Clamp, rewriter: Rewriter) -> None:
        rewriter.replace(match.node.outputs[0], match.source)


class _MaxOfZeroIsRelu(RewriteRule[Clamp]):
    """``Max(x, 0)`` is Relu, which runtimes fuse into the operator before it."""

    name = "write-relu"
    anchors: ClassVar[tuple[str, ...]] = ("Max", "Clip")

    def match(self, node: ir.Node, context: Context) -> Clamp | None:
        if node.op_type == "Max" and all(constant_scalar(value) != 0 for value in node.inputs):
            return None
        clamp = clamp_of(node, context)
        if clamp is None or clamp.interval != Interval(0, INFINITY):
            return None
        return clamp if is_float(clamp.source) else None

    def rewrite(self, match: Clamp, rewriter: Rewriter) -> None:
        output = match.node.outputs[0]
        rewriter.replace(output, rewriter.op("Relu", [match.source], like=output))


class SimplifyClips(RewritePass):
    """Merge and remove Clip, Relu and Min or Max with a constant."""

    name = "simplify-clips"

    def rules(self) -> list[RewriteRule[Any]]:
        """Merging first, so that what is left is looked at once."""
        return [_MergeClamps(), _ForwardWithinRange(), _MaxOfZeroIsRelu()]
