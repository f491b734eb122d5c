"""Operators that treat each channel by itself: normalization by channel, pooling, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.attributes import (
    axes,
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.analysis.values import constant_array
from onnxopt.channels.followers import AxisRef, Operand
from onnxopt.channels.known import Known, Transfer, nothing_known, unchanged
from onnxopt.channels.operators.products import pads_nothing
from onnxopt.channels.tracer import Handler, Tracer, axes_with_channels
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]


def _batch_norm(node: ir.Node, tracer: Tracer) -> None:
    if tracer.of(node.inputs[0]) is None:
        return
    if int_attribute(node, "training_mode", 0) or any(each.uses() for each in node.outputs[1:]):
        raise Refuse("statistics are updated")
    if int_attribute(node, "spatial", 1) != 1:
        raise Refuse("each place has statistics of its own")
    epsilon = float_attribute(node, "epsilon", 1e-5)
    scale, bias, mean, variance = _parameters(node, tracer, 4)
    dtype = _dtype(node)
    dead = scale == 0

    def transfer(known: Sequence[Known | None]) -> Known | None:
        constant, values = dead, bias
        if (given := known[0]) is not None:
            line = (given.numbers - mean) * (scale / np.sqrt(variance + epsilon))
            constant, values = dead | given.mask, np.where(dead, bias, bias + line)
        with np.errstate(over="ignore"):
            return Known(constant, values.astype(dtype))

    _emit(node, tracer, transfer, 4, in_place=True)


def _instance_norm(node: ir.Node, tracer: Tracer) -> None:
    if tracer.of(node.inputs[0]) is None:
        return
    scale, bias = _parameters(node, tracer, 2)
    dtype = _dtype(node)

    def transfer(known: Sequence[Known | None]) -> Known | None:
        # The mean of a constant is the constant: what is left is the bias.
        constant = scale == 0
        if known[0] is not None:
            constant = constant | known[0].mask
        return Known(constant, bias.astype(dtype))

    _emit(node, tracer, transfer, 2)


def _parameters(node: ir.Node, tracer: Tracer, count: int) -> list[NDArray[np.float64]]:
    """The numbers that a node holds for each channel, in the shape of the channels.

    Raises:
        Refuse: When they are not constant, or the channels do not lie along axis 1.
    """
    source = node.inputs[0]
    assert source is not None
    ids = tracer.single_axis(source, 1)
    assert ids is not None
    shape = (1, -1, *[1] * (tracer.rank(source) - 2))
    found: list[NDArray[np.float64]] = []
    for value in node.inputs[1 : count + 1]:
        array = constant_array(value)
        if array is None or array.shape != ids.shape:
            raise Refuse("parameters are not constant")
        found.append(array.astype(np.float64).reshape(shape))
    return found


def _dtype(node: ir.Node) -> np.dtype[Any]:
    source = node.inputs[0]
    if source is None or source.dtype is None:
        raise Refuse("an element type is not known")
    return source.dtype.numpy()


def _emit(
    node: ir.Node,
    tracer: Tracer,
    transfer: Transfer,
    parameters: int = 0,
    *,
    in_place: bool = False,
) -> None:
    """Let the output have the channels of the input."""
    source, output = node.inputs[0], node.outputs[0]
    ids = tracer.of(source)
    if ids is not None:
        followers = [
            Operand(node, index, 0, AxisRef(output, 1)) for index in range(1, parameters + 1)
        ]
        tracer.emit(output, ids, [source], transfer, followers, in_place=in_place)


def _zeros(known: Sequence[Known | None]) -> Known | None:
    given = known[0]
    return None if given is None else Known(given.mask & ~given.nonzero, given.values)


def _pool(node: ir.Node, tracer: Tracer) -> None:
    source = node.inputs[0]
    if source is None or tracer.single_axis(source, 1) is None:
        return
    if any(each.uses() or each.is_graph_output() for each in node.outputs[1:]):
        raise Refuse("the places of maxima are read")
    _emit(node, tracer, _pooled(node))


def _pooled(node: ir.Node) -> Transfer:
    """A constant stays one unless padding is counted, or is all that some window sees."""
    if int_attribute(node, "ceil_mode", 0):
        return nothing_known
    if pads_nothing(node):
        return unchanged
    if int_attribute(node, "count_include_pad", 0):
        return _zeros
    return unchanged if _windows_hold_elements(node) else nothing_known


def _windows_hold_elements(node: ir.Node) -> bool:
    """Whether no window of a pooling lies in the padding altogether."""
    if any(step != 1 for step in ints_attribute(node, "dilations") or ()):
        return False
    if string_attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return True
    pads, kernel = ints_attribute(node, "pads") or (), ints_attribute(node, "kernel_shape") or ()
    return all(pad < size for pad, size in zip(pads, (*kernel, *kernel), strict=True))


def _global_pool(node: ir.Node, tracer: Tracer) -> None:
    source = node.inputs[0]
    if source is not None and tracer.single_axis(source, 1) is not None:
        _emit(node, tracer, unchanged)


_MEANS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin"})
_SUMS = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})


def _reduce(node: ir.Node, tracer: Tracer) -> None:
    source, output = node.inputs[0], node.outputs[0]
    ids = tracer.of(source)
    if ids is None:
        return
    given = axes(node)
    if not given and int_attribute(node, "noop_with_empty_axes", 0):
        raise Refuse("a reduction over no axes")
    reduced = {axis % ids.ndim for axis in given or range(ids.ndim)}
    if reduced.intersection(axes_with_channels(ids)):
        raise Refuse("reduced over the channels")
    kept = int_attribute(node, "keepdims", 1)
    shape = [size for axis, size in enumerate(ids.shape) if kept or axis not in reduced]
    through = unchanged if node.op_type in _MEANS else _zeros if node.op_type in _SUMS else None

    def transfer(known: Sequence[Known | None]) -> Known | None:
        result = through(known) if through is not None else None
        if result is None:
            return None
        return Known(result.mask.reshape(shape), result.values.reshape(shape))

    tracer.emit(output, ids.reshape(shape), [source], transfer)


def _softmax(node: ir.Node, tracer: Tracer) -> None:
    ids = tracer.of(node.inputs[0])
    if ids is None:
        return
    if tracer.opset < 13:
        raise Refuse("Softmax over several axes")
    if int_attribute(node, "axis", -1) % ids.ndim in axes_with_channels(ids):
        raise Refuse("normalized over the channels")
    _emit(node, tracer, nothing_known)


HANDLERS: dict[str, Handler] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    **dict.fromkeys(
        (*_MEANS, *_SUMS, "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"),
        _reduce,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
}
