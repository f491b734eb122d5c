"""Intervals that values never leave, as far as the operators before them tell."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.analysis.attributes import (
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.analysis.values import is_float
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse

from .clamps import INFINITY, clamp_of

__all__ = ["MOST_STEPS", "may_have_range", "value_range"]

#: What comes out of an operator for finite input of a float type.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Softsign", "Sign"), (-1.0, 1.0)),
    **dict.fromkeys(("Relu", "Abs", "Exp", "Sqrt", "Softplus", "Acos", "Cosh"), (0.0, INFINITY)),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare"), (0.0, INFINITY)),
    **dict.fromkeys(("LogSoftmax",), (-INFINITY, 0.0)),
    **dict.fromkeys(("ThresholdedRelu",), (0.0, INFINITY)),
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
#: How far upstream a range is looked for.
MOST_STEPS = 4


def may_have_range(node: ir.Node) -> bool:
    """Whether it pays to ask for the range of what a node makes."""
    return is_standard(node) and (
        node.op_type in _RANGES
        or node.op_type in _SELECTIONS
        or node.op_type in _MEANS
        or node.op_type in ("Clip", "Min", "Max", "Mul", "Concat", "AveragePool")
    )


def value_range(value: ir.Value, context: Context, steps: int) -> tuple[float, float] | None:
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
        return value_range(node.inputs[0], context, steps - 1)
    if node.op_type == "AveragePool":
        source = node.inputs[0]
        inner = None if source is None else value_range(source, context, steps - 1)
        if inner is None or int_attribute(node, "count_include_pad", 0) == 0:
            return inner
        return min(inner[0], 0.0), max(inner[1], 0.0)
    if node.op_type == "Mul":
        square = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return (0.0, INFINITY) if square else None
    if node.op_type == "Concat":
        return _range_of_all(node.inputs, context, steps - 1)
    if node.op_type in ("Clip", "Min", "Max"):
        clamp = clamp_of(node, context)
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
    ranges = [None if value is None else value_range(value, context, steps) for value in values]
    known = [bounds for bounds in ranges if bounds is not None]
    if not known or len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)
