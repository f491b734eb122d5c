"""Rules for shapes, one an operator.

A rule gives the shape of one output of a node: one entry a dimension, None for a dimension it
cannot tell, and None as a whole when it cannot tell the rank. A file or ONNX's own inference may
still know what a rule does not; the rules here are for operators where sizes pass through, so that
a dynamic size keeps its identity from the graph input to the place where it is asked for.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.expressions import ONE, ZERO, number
from onnxopt.analysis.symbolic_movement import MOVEMENT_RULES, axes_of, axis_from_front
from onnxopt.analysis.symbolic_values import Dims, Questions, Shape, ShapeRule, broadcast
from onnxopt.op_traits import Trait, has_trait

__all__ = ["shape_rule"]


def shape_rule(node: ir.Node) -> ShapeRule | None:
    """The rule for a node of the standard domain, or None when its operator has none."""
    rule = _RULES.get(node.op_type)
    if rule is None and has_trait(node, Trait.UNARY):
        return _same
    if rule is None and has_trait(node, Trait.BROADCAST) and "broadcast" not in node.attributes:
        return _broadcast
    return rule


# Shapes of the inputs as they are


def _same(node: ir.Node, index: int, ask: Questions) -> Dims | None:
    """The first output has the shape of the first input."""
    return ask.shapes(node.inputs[0])[0] if index == 0 else None


def _broadcast(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    result: Dims = ()
    for shape in ask.shapes(*node.inputs):
        if shape is None:
            return None
        result = broadcast(result, shape)
    return result


# Tensors made from a shape


def _constant_of_shape(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [target] = ask.integers(node.inputs[0])
    return None if target is None else target.elements


def _range(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    start, limit, delta = ask.integers(*node.inputs)
    if start is None or limit is None or delta is None or delta.constants != (1,):
        return [None]
    length = limit.elements[0] - start.elements[0]
    return [length if length.at_least(ZERO) else None]


def _one_hot(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [indices] = ask.shapes(node.inputs[0])
    [depth] = ask.integers(node.inputs[1])
    if indices is None:
        return None
    axis = axis_from_front(int_attribute(node, "axis", -1), len(indices) + 1)
    known = depth is not None and depth.elements[0].at_least(ZERO)
    size = depth.elements[0] if depth is not None and known else None
    return (*indices[:axis], size, *indices[axis:])


def _shape(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return [None]
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(shape))
    return [number(len(shape[slice(start, end)]))]


def _scalar(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    return ()


# Computation


def _matmul(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    left, right = ask.shapes(*node.inputs[:2])
    if not left or not right:
        return None
    rows = () if len(left) == 1 else (left[-2],)
    columns = () if len(right) == 1 else (right[-1],)
    return (*broadcast(left[:-2], right[:-2]), *rows, *columns)


def _gemm(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    left, right = ask.shapes(*node.inputs[:2])
    if left is None or right is None:
        return None
    rows = left[1 if int_attribute(node, "transA", 0) else 0]
    return [rows, right[0 if int_attribute(node, "transB", 0) else 1]]


def _reduction(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    axes = axes_of(node, ask)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return [None] * len(shape) if int_attribute(node, "keepdims", 1) else None
    if not axes:
        if int_attribute(node, "noop_with_empty_axes", 0):
            return shape
        axes = tuple(range(len(shape)))
    return _without(shape, {axis_from_front(axis, len(shape)) for axis in axes}, node)


def _arg_reduction(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    return _without(shape, {axis_from_front(int_attribute(node, "axis", 0), len(shape))}, node)


def _without(shape: Shape, gone: set[int], node: ir.Node) -> Dims:
    keep = int_attribute(node, "keepdims", 1)
    dims = [ONE if axis in gone else dim for axis, dim in enumerate(shape)]
    return dims if keep else [dim for axis, dim in enumerate(dims) if axis not in gone]


def _batch(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    """Convolution and pooling keep the batch; the rest is for shape inference to say."""
    [shape] = ask.shapes(node.inputs[0])
    if shape is None or len(shape) < 2:
        return None
    return [shape[0], *[None] * (len(shape) - 1)]


def _rules() -> dict[str, ShapeRule]:
    groups: dict[ShapeRule, str] = {
        _same: """Softmax LogSoftmax Hardmax LayerNormalization RMSNormalization GroupNormalization
            BatchNormalization InstanceNormalization LpNormalization MeanVarianceNormalization LRN
            Dropout CumSum CumProd Trilu QuantizeLinear DequantizeLinear DynamicQuantizeLinear
            Scatter ScatterElements ScatterND ReverseSequence RotaryEmbedding""",
        _batch: """Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool
            GlobalLpPool ConvInteger QLinearConv""",
        _reduction: """ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2
            ReduceLogSum ReduceLogSumExp ReduceSumSquare""",
        _arg_reduction: "ArgMax ArgMin",
        _matmul: "MatMul MatMulInteger",
        _gemm: "Gemm",
        _constant_of_shape: "ConstantOfShape",
        _range: "Range",
        _one_hot: "OneHot",
        _shape: "Shape",
        _scalar: "Size",
    }
    return MOVEMENT_RULES | {op: rule for rule, ops in groups.items() for op in ops.split()}


_RULES = _rules()
