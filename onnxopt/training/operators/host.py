"""Arithmetic of small arrays: what models compute of shapes, in Python instead of in tensors.

An operator that is not here works on tensors; an array is turned into one first.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxopt.rewriting import Refuse
from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.numbers import Host, as_host, integers
from onnxopt.training.operators.movement import bounded_slice, reshaped, unsqueezed_shape

__all__ = ["HOST_BUILDERS"]


def _elementwise(function: Callable[..., Any]) -> Builder:
    """An operator that numpy broadcasts; symbols are handled one by one."""

    def build(node: NodeView) -> Call:
        def on_arrays(*arrays: Host) -> Host:
            return as_host(functools.reduce(function, arrays))

        return Call(on_arrays, node.hosts())

    return build


def _quotient(x: Any, y: Any) -> Any:
    if isinstance(x, float | torch.SymFloat) or isinstance(y, float | torch.SymFloat):
        return x / y
    if not isinstance(x, torch.SymInt) and x < 0:
        return -(-x // y)
    return x // y if isinstance(y, torch.SymInt) or y > 0 else -(x // -y)


def _div(x: Host, y: Host) -> Any:
    if x.dtype.kind == "f" and y.dtype.kind == "f":
        return np.divide(x, y)
    return np.frompyfunc(_quotient, 2, 1)(x.astype(object), y.astype(object))


def _compare(function: Callable[[Any, Any], Any]) -> Callable[[Host, Host], Any]:
    def compare(x: Host, y: Host) -> Any:
        if x.dtype != object and y.dtype != object:
            return function(x, y)
        pairs = np.frompyfunc(lambda one, other: bool(function(one, other)), 2, 1)
        return np.asarray(pairs(x, y)).astype(bool)

    return compare


def _where(condition: Host, x: Host, y: Host) -> Host:
    return as_host(np.where(condition.astype(bool), x, y))


def _gather(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 0)
    node.require(not node.is_computed(1), "sizes picked by other sizes")

    def gather(x: Host, indices: Host) -> Host:
        return as_host(np.take(x, np.asarray(indices.tolist(), np.int64), axis=axis))

    return Call(gather, node.hosts())


def _concat(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 0)
    return Call(lambda *arrays: as_host(np.concatenate(arrays, axis=axis)), node.hosts())


def _slice(node: NodeView) -> Call:
    node.require(not node.has_attribute("starts"), "slices by attributes of shapes")
    for index in (1, 2, 3, 4):
        node.require(not node.is_computed(index), "sizes cut by other sizes")

    def cut(x: Host, *given: Host | None) -> Host:
        starts, ends, axes, steps = (None if each is None else integers(each) for each in given)
        assert starts is not None
        assert ends is not None
        taken: list[Any] = [slice(None)] * x.ndim
        for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
            axis = at if axes is None else axes[at]
            step = 1 if steps is None else steps[at]
            place = bounded_slice(x.shape[axis], start, end, step)
            taken[axis] = list(place) if isinstance(place, range) else place
        return as_host(x[tuple(taken)])

    return Call(cut, tuple(node.host(index) for index in range(5)))


def _reshape(node: NodeView) -> Call:
    zero_is_zero = bool(node.int_attribute("allowzero", 0))
    node.require(not node.is_computed(1), "sizes shaped by other sizes")

    def reshape(x: Host, sizes: Host) -> Host:
        return x.reshape([int(size) for size in reshaped(x.shape, integers(sizes), zero_is_zero)])

    return Call(reshape, node.hosts())


def _squeeze(node: NodeView) -> Call:
    axes = node.axes()
    return Call(lambda x: x.squeeze(axes), (node.host(0),))


def _unsqueeze(node: NodeView) -> Call:
    axes = node.axes() or ()
    return Call(lambda x: x.reshape(unsqueezed_shape(x.shape, axes)), (node.host(0),))


def _identity(node: NodeView) -> Call:
    return Call(lambda x: x, (node.host(0),))


def _cast(node: NodeView) -> Call:
    to = node.type_attribute("to", ir.DataType.INT64)
    node.ignore_attributes("saturate", "round_mode")

    def cast(x: Host) -> Host:
        if x.dtype != object:
            return x.astype(to.numpy())
        if to.is_floating_point():
            return as_host(np.frompyfunc(torch.sym_float, 1, 1)(x))
        return as_host(np.frompyfunc(torch.sym_int, 1, 1)(x))

    if to not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.BOOL):
        raise Refuse(f"sizes as {to.name}")
    return Call(cast, (node.host(0),))


def _floor(node: NodeView) -> Call:
    return Call(lambda x: as_host(np.floor(x)), (node.host(0),))


def _ceil(node: NodeView) -> Call:
    return Call(lambda x: as_host(np.ceil(x)), (node.host(0),))


def _shape(node: NodeView) -> Call:
    """How many sizes there are: the rank of a tensor, which is the same in every run."""
    node.ignore_attributes("start", "end")
    node.require(not node.has_attribute("start"), "a part of a rank")
    return Call(lambda x: as_host(list(x.shape)), (node.host(0),))


def _constant_of_shape(node: NodeView) -> Call:
    """As many equal numbers as there are sizes."""
    value = node.tensor_attribute("value")
    node.require(node.is_rank(0), "a tensor whose size differs from run to run")
    if value is None or value.dtype.kind != "i":
        raise Refuse("sizes that are no integers")
    number = value.reshape(-1)[0]
    return Call(lambda sizes: np.full(integers(sizes), number), (node.host(0),))


def _product(node: NodeView) -> Call:
    keep = bool(node.int_attribute("keepdims", 1))
    axes = node.axes()

    def product(x: Host) -> Host:
        return as_host(np.prod(x, axis=axes, keepdims=keep))

    return Call(product, (node.host(0),))


HOST_BUILDERS: dict[str, Builder] = {
    "Add": _elementwise(operator.add),
    "And": _elementwise(np.logical_and),
    "Cast": _cast,
    "Ceil": _ceil,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_div),
    "Equal": _elementwise(_compare(operator.eq)),
    "Floor": _floor,
    "Gather": _gather,
    "Greater": _elementwise(_compare(operator.gt)),
    "GreaterOrEqual": _elementwise(_compare(operator.ge)),
    "Identity": _identity,
    "Less": _elementwise(_compare(operator.lt)),
    "LessOrEqual": _elementwise(_compare(operator.le)),
    "Max": _elementwise(np.maximum),
    "Min": _elementwise(np.minimum),
    "Mul": _elementwise(operator.mul),
    "Or": _elementwise(np.logical_or),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(operator.sub),
    "Unsqueeze": _unsqueeze,
    "Where": lambda node: Call(_where, node.hosts()),
}
