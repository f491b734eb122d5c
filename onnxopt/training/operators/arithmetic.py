"""Arithmetic, comparison and logic of tensors that are broadcast as numpy does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.analysis.values import rank
from onnxopt.rewriting import Refuse
from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]


def _binary(function: Callable[..., Any]) -> Builder:
    """An operator of two tensors; a constant of one element becomes a Python number."""

    def build(node: NodeView) -> Call:
        _require_computable(node)
        if node.opset < _NUMPY_BROADCASTING:
            return _along_axis(node, function)
        second = _scalar(node, 1)
        if second is not None:
            return Call(lambda x: function(x, second), (node.tensor(0),))
        first = _scalar(node, 0)
        if first is not None and function in _COMMUTE:
            return Call(lambda x: function(x, first), (node.tensor(1),))
        return Call(function, (node.tensor(0), node.tensor(1)))

    return build


def _along_axis(node: NodeView, function: Callable[..., Any]) -> Call:
    """Old opsets: the second input is broadcast from an axis on, when asked for."""
    axis = node.int_attribute("axis", -1)
    node.ignore_attributes("broadcast", "consumed_inputs")

    def apply(x: Tensor, y: Tensor) -> Any:
        after = x.ndim - axis - y.ndim if axis >= 0 else 0
        return function(x, y.reshape((*y.shape, *(1,) * after)))

    return Call(apply, (node.tensor(0), node.tensor(1)))


def _require_computable(node: NodeView) -> None:
    """Refuse element types that PyTorch stores and does not compute with."""
    for value in node.node.inputs:
        if value is not None and value.dtype in _STORED_ONLY:
            raise Refuse(f"computing with element type {value.dtype.name}")


def _scalar(node: NodeView, index: int) -> float | int | None:
    """A constant of one element that does not change the rank of the result, else None."""
    number, array, other = node.number(index), node.constant(index), rank(node.input(1 - index))
    if number is None or array is None or isinstance(number, bool) or array.dtype.kind not in "fi":
        return None
    return number if array.ndim == 0 or (other is not None and array.ndim <= other) else None


def _div(x: Tensor, y: Tensor | float) -> Tensor:
    """Quotient; that of integers is cut towards 0."""
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _pow(node: NodeView) -> Call:
    _require_computable(node)
    number = _scalar(node, 1)
    if number is not None:
        return Call(lambda x: torch.pow(x, number).to(x.dtype), (node.tensor(0),))

    def power(x: Tensor, y: Tensor) -> Tensor:
        return torch.pow(x, y).to(x.dtype)

    return Call(power, (node.tensor(0), node.tensor(1)))


def _mod(node: NodeView) -> Call:
    """Remainder with the sign of the divisor, or of the dividend with ``fmod``."""
    _require_computable(node)
    function = torch.fmod if node.int_attribute("fmod", 0) else torch.remainder
    return Call(function, (node.tensor(0), node.tensor(1)))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Builder:
    def build(node: NodeView) -> Call:
        _require_computable(node)
        return Call(lambda *tensors: functools.reduce(function, tensors), node.tensors())

    return build


def _mean(node: NodeView) -> Call:
    def mean(*tensors: Tensor) -> Tensor:
        return functools.reduce(torch.add, tensors) / len(tensors)

    return Call(mean, node.tensors())


def _where(node: NodeView) -> Call:
    return Call(torch.where, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _not(node: NodeView) -> Call:
    return Call(torch.logical_not, (node.tensor(0),))


def _bitwise_not(node: NodeView) -> Call:
    _require_computable(node)
    return Call(torch.bitwise_not, (node.tensor(0),))


def _bit_shift(node: NodeView) -> Call:
    _require_computable(node)
    left = node.string_attribute("direction", "") == "LEFT"
    shift = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return Call(shift, (node.tensor(0), node.tensor(1)))


#: Since then both inputs are broadcast as numpy does.
_NUMPY_BROADCASTING = 7
_STORED_ONLY = (
    ir.DataType.STRING,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
)
_COMMUTE = (torch.add, torch.mul)

BUILDERS: dict[str, Builder] = {
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "BitShift": _bit_shift,
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": _bitwise_not,
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Div": _binary(_div),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Not": _not,
    "Or": _binary(torch.logical_or),
    "Pow": _pow,
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
}
