"""Reading ``(x - mean(x)) / sqrt(variance(x) + epsilon)`` and its relatives in a graph."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnxopt.analysis.attributes import axes, int_attribute
from onnxopt.analysis.values import rank
from onnxopt.rewriting import Refuse

from ..shared.spellings import made_by, scalar, split_constant

__all__ = ["Centred", "Deviation", "centred", "deviation", "inverse_deviation", "trailing_axes"]

_Nodes = tuple[ir.Node, ...]


@dataclasses.dataclass(frozen=True)
class Deviation:
    """``sqrt(mean(source ** 2) + epsilon)`` or its reciprocal, spelled by ``nodes``."""

    source: ir.Value
    epsilon: float
    mean: ir.Node
    nodes: _Nodes


def deviation(value: ir.Value | None) -> Deviation | None:
    """The value as a root of a mean square: Sqrt, or Pow by 1/2."""
    node = made_by(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and scalar(node.inputs[1]) != 0.5):
        return None
    return _mean_square(node.inputs[0], (node,))


def inverse_deviation(value: ir.Value | None) -> Deviation | None:
    """The value as one over a `deviation`: Reciprocal, 1 divided by it, or Pow by -1/2."""
    node = made_by(value, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Pow":
        return _mean_square(node.inputs[0], (node,)) if scalar(node.inputs[1]) == -0.5 else None
    if node.op_type == "Div" and scalar(node.inputs[0]) != 1.0:
        return None
    found = deviation(node.inputs[-1])
    return None if found is None else dataclasses.replace(found, nodes=(node, *found.nodes))


def _mean_square(value: ir.Value | None, nodes: _Nodes) -> Deviation | None:
    """The value as ``mean(source ** 2) + epsilon``."""
    add = made_by(value, "Add")
    split = None if add is None else split_constant(add)
    if add is None or split is None or split[1] < 0:
        return None
    mean = made_by(split[0], "ReduceMean")
    square = None if mean is None else made_by(mean.inputs[0], "Mul", "Pow")
    if mean is None or square is None or square.inputs[0] is None:
        return None
    first, second = square.inputs
    is_square = second is first if square.op_type == "Mul" else scalar(second) == 2.0
    if not is_square:
        return None
    return Deviation(square.inputs[0], split[1], mean, (*nodes, add, mean, square))


@dataclasses.dataclass(frozen=True)
class Centred:
    """``x - mean(x)``."""

    x: ir.Value
    sub: ir.Node
    mean: ir.Node


def centred(value: ir.Value | None) -> Centred | None:
    """The value as something less its mean."""
    sub = made_by(value, "Sub")
    mean = None if sub is None else made_by(sub.inputs[1], "ReduceMean")
    if sub is None or mean is None or sub.inputs[0] is None or mean.inputs[0] is not sub.inputs[0]:
        return None
    return Centred(sub.inputs[0], sub, mean)


def trailing_axes(mean: ir.Node) -> int:
    """How many axes, the last ones, the mean runs along.

    Raises:
        Refuse: When it drops them, or runs along others, or when they are not known.
    """
    if int_attribute(mean, "keepdims", 1) != 1:
        raise Refuse("a mean drops its axes")
    along, size = axes(mean), rank(mean.inputs[0])
    if along is None or not along:
        if int_attribute(mean, "noop_with_empty_axes", 0) == 1:
            raise Refuse("a mean without axes does nothing")
        if size is None:
            raise Refuse("the rank is unknown")
        return size
    if any(axis >= 0 for axis in along):
        if size is None:
            raise Refuse("the rank is unknown")
        along = tuple(axis - size if axis >= 0 else axis for axis in along)
    if sorted(along) != list(range(-len(along), 0)):
        raise Refuse("a mean is not along the last axes")
    return len(along)
