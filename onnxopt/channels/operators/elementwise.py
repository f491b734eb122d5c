"""Operators that work on each element by itself, with broadcasting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.channels.atoms import Ids
from onnxopt.channels.evaluation import Evaluation
from onnxopt.channels.followers import AxisRef, Operand
from onnxopt.channels.known import Known, Transfer, unchanged
from onnxopt.channels.parameters import dequantizer, numbers_of, parameter_of, scales
from onnxopt.channels.tracer import Handler, Tracer, aligned, axes_with_channels
from onnxopt.op_traits import dropout_may_train
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS", "elementwise"]


@dataclasses.dataclass(frozen=True)
class _Operand:
    """An input.

    Attributes:
        value: The value.
        channels: Its channels, or None.
        array: Its numbers when it is constant.
    """

    value: ir.Value
    channels: Ids | None
    array: NDArray[Any] | None


def elementwise(node: ir.Node, tracer: Tracer) -> None:
    """Channels that meet become one atom; constants are sliced along."""
    operands = [
        None if value is None else _Operand(value, tracer.of(value), numbers_of(value))
        for value in node.inputs
    ]
    present = [each for each in operands if each is not None]
    if all(each.channels is None for each in present):
        return
    rank = max(tracer.rank(each.value) for each in present)
    laid = [aligned(each.channels, rank) for each in present if each.channels is not None]
    ids = next((each for each in laid if each.size > 1), laid[0])
    for other in laid:
        if other.shape == ids.shape:
            tracer.unite(ids, other)
        else:
            raise Refuse("combined with channels along another axis")
    axes = axes_with_channels(ids)
    output = node.outputs[0]
    followers: list[Operand] = []
    for index, each in enumerate(operands):
        if each is None or each.channels is not None:
            continue
        sizes = tracer.sizes(each.value)
        missing = rank - len(sizes)
        for axis in axes:
            size = sizes[axis - missing] if axis >= missing else 1
            if size == 1:
                continue
            if each.array is None:
                raise Refuse("combined with channels that are not followed")
            followers.extend(_slices(node, index, axis - missing, AxisRef(output, axis)))
    inputs = [None if each is None else each.value for each in operands]
    transfer = _transfer(node, tracer, operands, ids.shape)
    tracer.emit(output, ids, inputs, transfer, followers, in_place=True)


def _slices(node: ir.Node, index: int, axis: int, made: AxisRef) -> Iterator[Operand]:
    """What of a constant goes with channels, where it is stored.

    Raises:
        Refuse: When others read it, too.
    """
    stored = parameter_of(node, index, "constants") if dequantizer(node.inputs[index]) else None
    if stored is None:
        yield Operand(node, index, axis, made)
        return
    yield Operand(stored.node, stored.index, axis, made)
    if stored.axis == axis:
        yield from scales(stored, made)


def _transfer(
    node: ir.Node, tracer: Tracer, operands: Sequence[_Operand | None], shape: tuple[int, ...]
) -> Transfer:
    """The operator itself, on the constants."""
    evaluation = Evaluation(node, tracer.opset, tracer.ir_version)

    def transfer(known: Sequence[Known | None]) -> Known | None:
        parts: list[_Part | None] = []
        for each, given in zip(operands, known, strict=True):
            if each is None:
                parts.append(None)
            elif each.array is not None:
                parts.append(_constant_part(each.array, shape))
            elif given is not None:
                full = (1,) * (len(shape) - given.mask.ndim) + given.mask.shape
                parts.append(_Part(given.mask.reshape(full), given.values.reshape(full)))
            else:
                parts.append(_Part(np.zeros(shape, np.bool_), None))
        mask = np.ones(shape, np.bool_)
        for part in parts:
            if part is not None:
                mask &= part.mask
        zero = _products_that_are_zero(node, parts, shape)
        if not (mask | zero).any():
            return None
        found = evaluation.at(mask, [None if part is None else part.values for part in parts])
        if found is None:
            if not zero.any():
                return None
            dtype = next(part.values.dtype for part in parts if part and part.values is not None)
            found = Known(np.zeros(shape, np.bool_), np.zeros(shape, dtype))
        values = np.where(zero, np.zeros((), found.values.dtype), found.values)
        return Known(found.mask | zero, values)

    return transfer


@dataclasses.dataclass(frozen=True)
class _Part:
    """What is known of an operand.

    Attributes:
        mask: Channels at which it is constant, in the shape of the output's channels.
        values: The numbers there, in that shape or of one element; None for none at all.
    """

    mask: NDArray[np.bool_]
    values: NDArray[Any] | None


def _constant_part(array: NDArray[Any], shape: tuple[int, ...]) -> _Part:
    if array.size == 1:
        return _Part(np.ones(shape, np.bool_), array)
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(one not in (1, size) for one, size in zip(full.shape, shape, strict=True)):
        return _Part(np.zeros(shape, np.bool_), None)  # it differs within a channel
    return _Part(np.ones(shape, np.bool_), np.broadcast_to(full, shape))


def _products_that_are_zero(
    node: ir.Node, parts: Sequence[_Part | None], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Channels that a product sets to 0 whatever the other factor is, as long as it is finite."""
    zero = np.zeros(shape, np.bool_)
    if node.op_type == "Mul":
        for part in parts:
            if part is not None and part.values is not None:
                zero |= part.mask & (part.values == 0).reshape(
                    shape if part.values.size > 1 else (1,) * len(shape)
                )
    return zero


def _dropout(node: ir.Node, tracer: Tracer) -> None:
    source = node.inputs[0]
    ids = tracer.of(source)
    if ids is None:
        return
    if dropout_may_train(node):
        raise Refuse("Dropout that may train")
    if any(each.uses() or each.is_graph_output() for each in node.outputs[1:]):
        raise Refuse("the mask of Dropout is read")
    tracer.emit(node.outputs[0], ids, [source], unchanged, in_place=True)


HANDLERS: dict[str, Handler] = {"Dropout": _dropout}
