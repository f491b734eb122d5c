"""Convolutions and matrix products."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.analysis.values import constant_array, is_constant, is_float, static_shape
from onnxopt.channels.atoms import Ids
from onnxopt.channels.followers import AxisRef, Follower, GroupCount, Operand
from onnxopt.channels.layers import Layer
from onnxopt.channels.operators.depthwise import depthwise_transfer
from onnxopt.channels.tracer import Handler, Tracer
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of the weights.

    Raises:
        Refuse: When they are not constant, not floats, or read elsewhere too.
    """
    weights = node.inputs[1]
    if weights is None or not is_constant(weights):
        producer = None if weights is None else weights.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise Refuse("the weights are quantized")
        raise Refuse("the weights are not constant")
    if not is_float(weights):
        raise Refuse("the weights are no floating-point numbers")
    if len(weights.uses()) != 1 or weights.is_graph_output():
        raise Refuse("the weights are shared")
    shape = static_shape(weights)
    assert shape is not None
    return shape


def _check_bias(node: ir.Node) -> None:
    if len(node.inputs) > 2 and node.inputs[2] is not None and not is_constant(node.inputs[2]):
        raise Refuse("the bias is not constant")


def pads_nothing(node: ir.Node) -> bool:
    """Whether no output of a convolution or pooling sees padding."""
    auto = string_attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        kernel = ints_attribute(node, "kernel_shape")
        return kernel is not None and all(size == 1 for size in kernel)
    return auto == "VALID" or not any(ints_attribute(node, "pads") or ())


def _conv(node: ir.Node, tracer: Tracer) -> None:
    shape, groups = _weight_shape(node), int_attribute(node, "group", 1)
    _check_bias(node)
    source = node.inputs[0]
    assert source is not None
    if groups == 1 or shape[1] > 1:
        _layer(node, tracer, 1, 1, shape[0], len(shape), groups, pads_nothing(node))
        return
    ids = tracer.single_axis(source, 1)
    if ids is None:
        return
    # Depthwise: output channels belong to the input channel they are made of.
    output = node.outputs[0]
    many = shape[0] // groups
    made = AxisRef(output, 1)
    followers: list[Follower] = [Operand(node, 1, 0, made), GroupCount(node, AxisRef(source, 1))]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        followers.append(Operand(node, 2, 0, made))
    laid = _along(ids.repeat(many), 1, len(shape))
    transfer = depthwise_transfer(node, many, pads_nothing(node))
    tracer.emit(output, laid, [source], transfer, followers)


def _conv_transpose(node: ir.Node, tracer: Tracer) -> None:
    shape, groups = _weight_shape(node), int_attribute(node, "group", 1)
    _check_bias(node)
    # Outputs see different numbers of taps, unless there is one tap.
    plain = (
        all(size == 1 for size in shape[2:])
        and all(stride == 1 for stride in ints_attribute(node, "strides") or ())
        and not any(ints_attribute(node, "output_padding") or ())
        and ints_attribute(node, "output_shape") is None
        and pads_nothing(node)
    )
    _layer(node, tracer, 1, 1, shape[1] * groups, len(shape), groups, plain)


def _gemm(node: ir.Node, tracer: Tracer) -> None:
    shape = _weight_shape(node)
    if int_attribute(node, "transA", 0):
        raise Refuse("a transposed product")
    width = shape[0] if int_attribute(node, "transB", 0) else shape[1]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_array(node.inputs[2])
        if bias is None:
            raise Refuse("the bias is not constant")
    _layer(node, tracer, 1, 1, width, 2, 1, True)


def _matmul(node: ir.Node, tracer: Tracer) -> None:
    left, right = node.inputs
    if left is None or right is None:
        raise Refuse("an input is missing")
    if is_constant(left):
        raise Refuse("multiplied by weights from the left")
    if not is_constant(right) and tracer.of(left) is None and tracer.of(right) is None:
        return
    shape = _weight_shape(node)
    if len(shape) != 2:
        raise Refuse("a batch of weights")
    rank = tracer.rank(left)
    _layer(node, tracer, rank - 1, rank - 1, shape[1], rank, 1, True)


def _along(ids: Ids, axis: int, rank: int) -> Ids:
    shape = [1] * rank
    shape[axis] = -1
    return ids.reshape(shape)


def _layer(
    node: ir.Node,
    tracer: Tracer,
    source_axis: int,
    axis: int,
    width: int,
    rank: int,
    groups: int,
    uniform: bool,
) -> None:
    """Note down a layer, and make channels for its output."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    inputs = tracer.single_axis(source, source_axis)
    outputs = tracer.fresh(width)
    layer = Layer(
        node,
        None if inputs is None else AxisRef(source, source_axis),
        inputs,
        AxisRef(output, axis) if width > 1 else None,
        outputs if width > 1 else None,
        groups,
        uniform,
    )
    tracer.layers.append(layer)
    numpy_dtype = layer.blocks.dtype
    tracer.emit(
        output,
        _along(outputs, axis, rank),
        [source if inputs is not None else None],
        lambda known: layer.transfer(known[0], numpy_dtype),
    )


HANDLERS: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
