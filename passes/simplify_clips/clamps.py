"""Operators that move each number to the nearest point of an interval, read as that interval."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import float_attribute
from onnxopt.analysis.values import constant_scalar, is_float, rank
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse

__all__ = [
    "INFINITY",
    "OPERATORS",
    "TYPES",
    "TYPES_BEFORE_12",
    "Clamp",
    "Interval",
    "clamp_of",
    "finite_bounds",
]

INFINITY = math.inf
OPERATORS = ("Clip", "Relu", "Min", "Max")
#: Clip of opset 12 took integers in; before that ONNX Runtime runs it for these types only.
TYPES_BEFORE_12 = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
TYPES = TYPES_BEFORE_12 | {
    ir.DataType.DOUBLE,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT32,
    ir.DataType.UINT32,
    ir.DataType.INT64,
    ir.DataType.UINT64,
}


@dataclasses.dataclass(frozen=True)
class Interval:
    """Where numbers are moved to. Integers stay Python integers, which are exact."""

    low: float
    high: float

    def clamp(self, number: float) -> float:
        """The nearest point of the interval."""
        return min(max(number, self.low), self.high)

    def then(self, following: Interval) -> Interval:
        """This interval first, then another."""
        return Interval(following.clamp(self.low), following.clamp(self.high))


@dataclasses.dataclass(frozen=True)
class Clamp:
    """A node that moves ``source`` into an interval."""

    node: ir.Node
    source: ir.Value
    interval: Interval


def finite_bounds(dtype: ir.DataType) -> tuple[float, float]:
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


def clamp_of(node: ir.Node, context: Context) -> Clamp | None:
    """Read a node as a clamp, or None when it is none.

    Raises:
        Refuse: When it may be one, but the bounds or the element type do not tell.
    """
    if node.op_type not in OPERATORS or not is_standard(node) or not node.inputs:
        return None
    if node.op_type in ("Min", "Max"):
        return _clamp_of_extremum(node)
    source = node.inputs[0]
    if source is None:
        return None
    if source.dtype is None:
        raise Refuse("the element type is not known")
    if source.dtype not in TYPES | {ir.DataType.BFLOAT16}:
        raise Refuse("the element type is not one that the runtime clips")
    least, greatest = finite_bounds(source.dtype)
    if node.op_type == "Relu":
        # An integer is never above the greatest one, so that is where Clip's interval ends too.
        return Clamp(node, source, Interval(0, INFINITY if is_float(source) else greatest))
    opset = context.opset(node)
    low = _clip_bound(node, 1, "min", least, opset)
    high = _clip_bound(node, 2, "max", greatest, opset)
    if math.isnan(low) or math.isnan(high):
        raise Refuse("a bound is NaN")
    return Clamp(node, source, Interval(min(low, high), high))


def _clamp_of_extremum(node: ir.Node) -> Clamp | None:
    if len(node.inputs) != 2:
        return None
    for source, bound in (node.inputs, reversed(node.inputs)):
        number = constant_scalar(bound)
        if number is None or source is None or constant_scalar(source) is not None:
            continue
        if source.dtype is None:
            raise Refuse("the element type is not known")
        if source.dtype not in TYPES | {ir.DataType.BFLOAT16}:
            raise Refuse("the element type is not one that the runtime clips")
        if math.isnan(number):
            raise Refuse("a bound is NaN")
        bound_rank, source_rank = rank(bound), rank(source)
        if bound_rank != 0 and (source_rank is None or (bound_rank or 0) > source_rank):
            raise Refuse("the bound may broadcast the input up")
        least, greatest = (-INFINITY, INFINITY) if is_float(source) else finite_bounds(source.dtype)
        if node.op_type == "Max":
            return Clamp(node, source, Interval(number, max(greatest, number)))
        return Clamp(node, source, Interval(min(least, number), number))
    return None
