"""Convolutions and matrix products."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.channels.atoms import Ids
from onnxopt.channels.borders import Border
from onnxopt.channels.followers import AxisRef, Follower, GroupCount, Operand
from onnxopt.channels.integers import Grid
from onnxopt.channels.known import Known
from onnxopt.channels.layers import Layer
from onnxopt.channels.operators.attention import product_of_two
from onnxopt.channels.operators.depthwise import border_places, depthwise_transfer
from onnxopt.channels.operators.requantizing import requantizing
from onnxopt.channels.parameters import Parameter, is_parameter, parameter_of, scales
from onnxopt.channels.tracer import Handler, Tracer
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS", "Plan", "convolution", "layer"]


def _weights(node: ir.Node, axis: int) -> tuple[Parameter, tuple[int, ...]]:
    """The weights and their shape.

    Args:
        node: The layer.
        axis: The axis of the weights along which outputs lie.

    Raises:
        Refuse: When they are not constant, not understood, or read elsewhere too.
    """
    value = node.inputs[1]
    weights = parameter_of(node, 1, "weights")
    assert value is not None
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Refuse("the weights are shared")
    if weights.has_scales and weights.axis != axis:
        raise Refuse("the weights have scales along their inputs")
    return weights, weights.stored.shape


def _bias(node: ir.Node) -> Parameter | None:
    """The bias; None when there is none.

    Raises:
        Refuse: When it is not constant.
    """
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    return parameter_of(node, 2, "biases")


def pads_nothing(node: ir.Node) -> bool:
    """Whether no output of a convolution or pooling sees padding."""
    auto = string_attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        kernel = ints_attribute(node, "kernel_shape")
        return kernel is not None and all(size == 1 for size in kernel)
    return auto == "VALID" or not any(ints_attribute(node, "pads") or ())


def _conv(node: ir.Node, tracer: Tracer) -> None:
    (weights, _), bias = _weights(node, 0), _bias(node)
    convolution(node, tracer, weights, bias)


def convolution(
    node: ir.Node,
    tracer: Tracer,
    weights: Parameter,
    bias: Parameter | None,
    grid: Grid | None = None,
) -> None:
    """Follow channels through a convolution.

    Args:
        node: The node.
        tracer: Of the graph.
        weights: Its weights.
        bias: Its bias.
        grid: Of the integers that come in, if it is a QLinearConv.
    """
    shape, groups = weights.stored.shape, int_attribute(node, "group", 1)
    source = node.inputs[0]
    assert source is not None
    if groups == 1 or shape[1] > 1:
        layer(node, tracer, weights, bias, Plan(1, 1, shape[0], len(shape), groups), grid)
        return
    ids = tracer.single_axis(source, 1)
    if ids is None:
        return
    # Depthwise: output channels belong to the input channel they are made of.
    output = node.outputs[0]
    many = shape[0] // groups
    made = AxisRef(output, 1)
    followers: list[Follower] = [GroupCount(node, AxisRef(source, 1))]
    for each in (weights, bias):
        if each is not None:
            followers.extend([Operand(each.node, each.index, 0, made), *scales(each, made)])
    laid = _along(ids.repeat(many), 1, len(shape))
    transfer = depthwise_transfer(weights, bias, many, pads_nothing(node), grid is not None)
    if grid is not None:
        transfer = requantizing(node, tracer, weights, grid, transfer)
    tracer.emit(output, laid, [source], transfer, followers)
    places = border_places(node, shape[2:], tracer.sizes(source)[2:])
    if places is not None:
        tracer.borders.append(Border(source, output, weights, bias, many, places))


def _conv_transpose(node: ir.Node, tracer: Tracer) -> None:
    (weights, shape), bias = _weights(node, 1), _bias(node)
    groups = int_attribute(node, "group", 1)
    if groups > 1 and weights.has_scales:
        raise Refuse("groups share scales of weights")
    # Outputs see different numbers of taps, unless there is one tap.
    plain = (
        all(size == 1 for size in shape[2:])
        and all(stride == 1 for stride in ints_attribute(node, "strides") or ())
        and not any(ints_attribute(node, "output_padding") or ())
        and ints_attribute(node, "output_shape") is None
        and pads_nothing(node)
    )
    plan = Plan(1, 1, shape[1] * groups, len(shape), groups, plain)
    layer(node, tracer, weights, bias, plan)


def _gemm(node: ir.Node, tracer: Tracer) -> None:
    transposed = int_attribute(node, "transB", 0) != 0
    (weights, shape), bias = _weights(node, 0 if transposed else 1), _bias(node)
    if int_attribute(node, "transA", 0):
        raise Refuse("a transposed product")
    layer(node, tracer, weights, bias, Plan(1, 1, shape[0 if transposed else 1], 2))


def _matmul(node: ir.Node, tracer: Tracer) -> None:
    left, right = node.inputs
    if left is None or right is None:
        raise Refuse("an input is missing")
    if is_parameter(left):
        raise Refuse("multiplied by weights from the left")
    if not is_parameter(right):
        product_of_two(node, tracer)
        return
    weights, shape = _weights(node, 1)
    if len(shape) != 2:
        raise Refuse("a batch of weights")
    rank = tracer.rank(left)
    layer(node, tracer, weights, None, Plan(rank - 1, rank - 1, shape[1], rank))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the channels of a layer lie.

    Attributes:
        source_axis: Axis of the input that is summed over.
        axis: Axis of the output along which its channels lie.
        width: How many.
        rank: Of the output.
        groups: Groups that do not mix.
        uniform: Whether it adds the same everywhere; None to ask the padding.
    """

    source_axis: int
    axis: int
    width: int
    rank: int
    groups: int = 1
    uniform: bool | None = None


def _along(ids: Ids, axis: int, rank: int) -> Ids:
    shape = [1] * rank
    shape[axis] = -1
    return ids.reshape(shape)


def layer(
    node: ir.Node,
    tracer: Tracer,
    weights: Parameter,
    bias: Parameter | None,
    plan: Plan,
    grid: Grid | None = None,
) -> None:
    """Note down a layer, and make channels for its output.

    Args:
        node: The node.
        tracer: Of the graph.
        weights: Its weights.
        bias: Its bias.
        plan: Where its channels lie.
        grid: Of the integers that come in, if it multiplies integers.
    """
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    inputs = tracer.single_axis(source, plan.source_axis)
    outputs = tracer.fresh(plan.width)
    made = AxisRef(output, plan.axis) if plan.width > 1 else None
    made_by = Layer(
        node=node,
        source=None if inputs is None else AxisRef(source, plan.source_axis),
        inputs=inputs,
        output=made,
        outputs=None if made is None else outputs,
        rank=plan.rank,
        groups=plan.groups,
        uniform=pads_nothing(node) if plan.uniform is None else plan.uniform,
        weights=weights,
        given_bias=bias,
        grid=grid,
    )
    tracer.layers.append(made_by)
    dtype = _numpy_dtype(node.inputs[1]) if grid is None else np.dtype(np.float64)

    def transfer(known: Sequence[Known | None]) -> Known | None:
        return made_by.transfer(known[0], dtype)

    followers = [] if made is None else [*scales(weights, made), *_bias_slices(bias, made, plan)]
    tracer.emit(
        output,
        _along(outputs, plan.axis, plan.rank),
        [source if inputs is not None else None],
        transfer if grid is None else requantizing(node, tracer, weights, grid, transfer),
        followers,
    )


def _numpy_dtype(value: ir.Value | None) -> np.dtype[Any]:
    if value is None or value.dtype is None:
        raise Refuse("an element type is not known")
    return value.dtype.numpy()


def _bias_slices(bias: Parameter | None, made: AxisRef, plan: Plan) -> Iterator[Operand]:
    """The bias, where it has a number for each channel."""
    if bias is not None:
        shape = bias.stored.shape
        if shape and shape[-1] == plan.width:
            yield Operand(bias.node, bias.index, len(shape) - 1, made)
            yield from scales(bias, made)


HANDLERS: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
