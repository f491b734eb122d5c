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
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import (
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.analysis.values import constant_scalar, has_one_use, is_float, rank
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import (
    Context,
    Refuse,
    RewritePass,
    Rewriter,
    RewriteRule,
    can_replace,
)

__all__ = ["SimplifyClips"]

_INFINITY = math.inf
_OPERATORS = ("Clip", "Relu", "Min", "Max")
#: Clip of opset 12 took integers in; before that ONNX Runtime runs it for these types only.
_TYPES_BEFORE_12 = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_TYPES = _TYPES_BEFORE_12 | {
    ir.DataType.DOUBLE,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT32,
    ir.DataType.UINT32,
    ir.DataType.INT64,
    ir.DataType.UINT64,
}

#: What comes out of an operator for finite input of a float type.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Softsign", "Sign"), (-1.0, 1.0)),
    **dict.fromkeys(("Relu", "Abs", "Exp", "Sqrt", "Softplus", "Acos", "Cosh"), (0.0, _INFINITY)),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare"), (0.0, _INFINITY)),
    **dict.fromkeys(("LogSoftmax",), (-_INFINITY, 0.0)),
    **dict.fromkeys(("ThresholdedRelu",), (0.0, _INFINITY)),
}
#: Operators whose output holds nothing but elements of their first input. (ReduceMax is none: the
#: maximum of no elements is the lowest number.)
_SELECTIONS = frozenset(
    {"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"}
    | {"Slice", "Split", "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth"}
    | {"MaxPool"}
)
#: Operators whose output lies between the least and the greatest element of their input.
_MEANS = frozenset({"GlobalAveragePool", "ReduceMean"})
_MOST_STEPS = 4


@dataclasses.dataclass(frozen=True)
class _Interval:
    """Where numbers are moved to. Integers stay Python integers, which are exact."""

    low: float
    high: float

    def clamp(self, number: float) -> float:
        return min(max(number, self.low), self.high)

    def then(self, following: _Interval) -> _Interval:
        """This interval first, then another."""
        return _Interval(following.clamp(self.low), following.clamp(self.high))


@dataclasses.dataclass(frozen=True)
class _Clamp:
    """A node that moves ``source`` into an interval."""

    node: ir.Node
    source: ir.Value
    interval: _Interval


@dataclasses.dataclass(frozen=True)
class _Pair:
    first: _Clamp
    second: _Clamp

    @property
    def merged(self) -> _Interval:
        return self.first.interval.then(self.second.interval)


def _largest(dtype: ir.DataType) -> tuple[float, float]:
    """The least and the greatest finite number of an element type: the bounds Clip leaves out."""
    kind = dtype.numpy()
    if dtype.is_floating_point():
        limits = ml_dtypes.finfo(kind)
        return float(limits.min), float(limits.max)
    whole = np.iinfo(kind)
    return int(whole.min), int(whole.max)


def _clip_bound(node: ir.Node, index: int, name: str, absent: float, opset: int) -> float:
    if opset < 11:
        return float_attribute(node, name, absent)
    if len(node.inputs) <= index or node.inputs[index] is None:
        return absent
    number = constant_scalar(node.inputs[index])
    if number is None:
        raise Refuse("a bound of Clip is not constant")
    return number


def _clamp_of(node: ir.Node, context: Context) -> _Clamp | None:
    """Read a node as a clamp, or None when it is none.

    Raises:
        Refuse: When it may be one, but the bounds or the element type do not tell.
    """
    if node.op_type not in _OPERATORS or not is_standard(node) or not node.inputs:
        return None
    if node.op_type in ("Min", "Max"):
        return _clamp_of_extremum(node)
    source = node.inputs[0]
    if source is None:
        return None
    if source.dtype is None:
        raise Refuse("the element type is not known")
    if source.dtype not in _TYPES | {ir.DataType.BFLOAT16}:
        raise Refuse("the element type is not one that the runtime clips")
    least, greatest = _largest(source.dtype)
    if node.op_type == "Relu":
        # An integer is never above the greatest one, so that is where Clip's interval ends too.
        return _Clamp(node, source, _Interval(0, _INFINITY if is_float(source) else greatest))
    opset = context.opset(node)
    low = _clip_bound(node, 1, "min", least, opset)
    high = _clip_bound(node, 2, "max", greatest, opset)
    if math.isnan(low) or math.isnan(high):
        raise Refuse("a bound is NaN")
    return _Clamp(node, source, _Interval(min(low, high), high))


def _clamp_of_extremum(node: ir.Node) -> _Clamp | None:
    if len(node.inputs) != 2:
        return None
    for source, bound in (node.inputs, reversed(node.inputs)):
        number = constant_scalar(bound)
        if number is None or source is None or constant_scalar(source) is not None:
            continue
        if source.dtype is None:
            raise Refuse("the element type is not known")
        if source.dtype not in _TYPES | {ir.DataType.BFLOAT16}:
            raise Refuse("the element type is not one that the runtime clips")
        if math.isnan(number):
            raise Refuse("a bound is NaN")
        bound_rank, source_rank = rank(bound), rank(source)
        if bound_rank != 0 and (source_rank is None or (bound_rank or 0) > source_rank):
            raise Refuse("the bound may broadcast the input up")
        least, greatest = (-_INFINITY, _INFINITY) if is_float(source) else _largest(source.dtype)
        if node.op_type == "Max":
            return _Clamp(node, source, _Interval(number, max(greatest, number)))
        return _Clamp(node, source, _Interval(min(least, number), number))
    return None


def _expressible(interval: _Interval, dtype: ir.DataType, opset: int) -> str | None:
    """Why a clamp to the interval cannot be written at this opset, or None when it can."""
    if interval == _Interval(0, _INFINITY):
        return None
    allowed = _TYPES if opset >= 12 else _TYPES_BEFORE_12
    if opset >= 13:
        allowed = allowed | {ir.DataType.BFLOAT16}
    return None if dtype in allowed else "Clip does not take the element type at this opset"


def _write(
    clamp: _Interval, source: ir.Value, like: ir.Value, opset: int, rewriter: Rewriter
) -> ir.Value:
    """Insert the node that moves ``source`` into the interval."""
    assert source.dtype is not None
    if clamp == _Interval(0, _INFINITY):
        return rewriter.op("Relu", [source], like=like)
    least, greatest = _largest(source.dtype)
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
    anchors: ClassVar[tuple[str, ...]] = _OPERATORS

    def match(self, node: ir.Node, context: Context) -> _Pair | None:
        if not any(
            value is not None
            and (producer := value.producer()) is not None
            and producer.op_type in _OPERATORS
            for value in node.inputs
        ):
            return None
        second = _clamp_of(node, context)
        producer = second.source.producer() if second is not None else None
        if second is None or producer is None:
            return None
        first = _clamp_of(producer, context)
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


class _ForwardWithinRange(RewriteRule[_Clamp]):
    """Drop a clamp to an interval that its input never leaves."""

    name = "drop-clamp-without-effect"
    anchors: ClassVar[tuple[str, ...]] = _OPERATORS
    depth: ClassVar[int] = _MOST_STEPS + 1

    def match(self, node: ir.Node, context: Context) -> _Clamp | None:
        if not any(
            value is not None
            and (producer := value.producer()) is not None
            and _may_have_range(producer)
            for value in node.inputs
        ):
            return None
        clamp = _clamp_of(node, context)
        if clamp is None or not is_float(clamp.source):
            return None
        bounds = _range(clamp.source, context, _MOST_STEPS)
        if bounds is None:
            return None
        low, high = bounds
        inside = clamp.interval.low <= low and high <= clamp.interval.high
        return clamp if inside else None

    def check(self, match: _Clamp, context: Context) -> str | None:
        if not can_replace(match.node.outputs[0], match.source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: _Clamp, rewriter: Rewriter) -> None:
        rewriter.replace(match.node.outputs[0], match.source)


def _may_have_range(node: ir.Node) -> bool:
    return is_standard(node) and (
        node.op_type in _RANGES
        or node.op_type in _SELECTIONS
        or node.op_type in _MEANS
        or node.op_type in ("Clip", "Min", "Max", "Mul", "Concat", "AveragePool")
    )


def _range(value: ir.Value, context: Context, steps: int) -> tuple[float, float] | None:
    """An interval that a float value never leaves, NaN aside; None when none is known."""
    node = value.producer()
    if node is None or not is_standard(node) or not is_float(value) or steps == 0:
        return None
    # Only the first output holds the numbers; Split is the selection that has several.
    if value is not node.outputs[0] and node.op_type != "Split":
        return None
    try:
        return _range_from(node, context, steps)
    except Refuse:  # an attribute tells nothing: nothing is known of the range, which is an answer
        return None


def _range_from(node: ir.Node, context: Context, steps: int) -> tuple[float, float] | None:
    if node.op_type in _RANGES:
        if node.op_type == "ThresholdedRelu" and float_attribute(node, "alpha", 1.0) < 0:
            return None
        return _RANGES[node.op_type]
    if node.op_type in _SELECTIONS or node.op_type in _MEANS:
        if node.inputs[0] is None or (node.op_type == "MaxPool" and not _pools_elements(node)):
            return None
        return _range(node.inputs[0], context, steps - 1)
    if node.op_type == "AveragePool":
        source = node.inputs[0]
        inner = None if source is None else _range(source, context, steps - 1)
        if inner is None or int_attribute(node, "count_include_pad", 0) == 0:
            return inner
        return min(inner[0], 0.0), max(inner[1], 0.0)
    if node.op_type == "Mul":
        square = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return (0.0, _INFINITY) if square else None
    if node.op_type == "Concat":
        return _range_of_all(node.inputs, context, steps - 1)
    if node.op_type in ("Clip", "Min", "Max"):
        clamp = _clamp_of(node, context)
        return None if clamp is None else (clamp.interval.low, clamp.interval.high)
    return None


def _pools_elements(pool: ir.Node) -> bool:
    """Whether every window of a MaxPool certainly holds an element and not only padding.

    A window of padding gives the lowest number.
    """
    if int_attribute(pool, "ceil_mode", 0) != 0:
        return False
    pads = ints_attribute(pool, "pads") or ()
    if not any(pads):
        return string_attribute(pool, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    kernel = ints_attribute(pool, "kernel_shape") or ()
    dilations = ints_attribute(pool, "dilations") or ()
    return all(dilation == 1 for dilation in dilations) and all(
        pad < size for pad, size in zip(pads, kernel * 2, strict=True)
    )


def _range_of_all(
    values: Sequence[ir.Value | None], context: Context, steps: int
) -> tuple[float, float] | None:
    ranges = [None if value is None else _range(value, context, steps) for value in values]
    known = [bounds for bounds in ranges if bounds is not None]
    if not known or len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


class _MaxOfZeroIsRelu(RewriteRule[_Clamp]):
    """``Max(x, 0)`` is Relu, which runtimes fuse into the operator before it."""

    name = "write-relu"
    anchors: ClassVar[tuple[str, ...]] = ("Max", "Clip")

    def match(self, node: ir.Node, context: Context) -> _Clamp | None:
        if node.op_type == "Max" and all(constant_scalar(value) != 0 for value in node.inputs):
            return None
        clamp = _clamp_of(node, context)
        if clamp is None or clamp.interval != _Interval(0, _INFINITY):
            return None
        return clamp if is_float(clamp.source) else None

    def rewrite(self, match: _Clamp, rewriter: Rewriter) -> None:
        output = match.node.outputs[0]
        rewriter.replace(output, rewriter.op("Relu", [match.source], like=output))


class SimplifyClips(RewritePass):
    """Merge and remove Clip, Relu and Min or Max with a constant."""

    name = "simplify-clips"

    def rules(self) -> list[RewriteRule[Any]]:
        """Merging first, so that what is left is looked at once."""
        return [_MergeClamps(), _ForwardWithinRange(), _MaxOfZeroIsRelu()]
