"""What may join a normalization: a scale, a bias, and the casts around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import (
    constant,
    constant_array,
    dims,
    has_one_use,
    rank,
    static_shape,
)
from onnxopt.rewriting import Context, Rewriter, RewriteRule

from ..shared.spellings import made_by
from ..shared.targets import not_worth

__all__ = ["DropCasts", "MergeBias", "MergeScale"]

_Array = np.ndarray[Any, Any]

#: About what a node takes in the file.
_BYTES_OF_A_NODE = 64


@dataclasses.dataclass(frozen=True)
class _Joined:
    """A node that scales or shifts what a normalization gives.

    Attributes:
        node: The Mul or Add.
        normalization: The normalization.
        parameter: What it multiplies with or adds.
    """

    node: ir.Node
    normalization: ir.Node
    parameter: ir.Value


class _MergeParameter(RewriteRule[_Joined]):
    """What scale and bias share."""

    depth = 1
    _operators: ClassVar[tuple[str, ...]]

    def match(self, node: ir.Node, context: Context) -> _Joined | None:
        for value, parameter in (node.inputs, node.inputs[::-1]):
            normalization = made_by(value, *self._operators)
            if normalization is None or parameter is None:
                continue
            if constant_array(parameter) is not None or parameter.is_graph_input():
                return _Joined(node, normalization, parameter)
        return None

    def check(self, match: _Joined, context: Context) -> str | None:
        normalization, x = match.normalization, match.normalization.inputs[0]
        if not has_one_use(normalization.outputs[0]) or len(normalization.outputs) > 1:
            return "an intermediate result is used elsewhere"
        own, theirs = dims(x), dims(match.parameter)
        scale = static_shape(normalization.inputs[1])
        if own is None or theirs is None or scale is None:
            return "a shape is not known"
        if len(theirs) > len(own):
            return "the parameter widens the result"
        slots = _slots(normalization, scale, len(own))
        if slots is None or not _fits(theirs, slots):
            return "the parameter is not along the axes of the scale"
        if self._takes_place(match, scale):
            return None
        if constant_array(match.parameter) is None:
            return "the parameter is not constant"
        arrays = [constant_array(value) for value in normalization.inputs[1:]]
        if any(array is None for array in arrays):
            return "the scale or the bias is not constant"
        merged = self._merged(match)
        if not all(np.isfinite(array).all() for array in merged):
            return "a merged parameter is not finite"
        freed = _exclusive_bytes([*normalization.inputs[1:], match.parameter])
        if sum(array.nbytes for array in merged) - freed > _BYTES_OF_A_NODE:
            return "the model would grow: a parameter is shared or broadcasts"
        return None

    def _takes_place(self, match: _Joined, scale: tuple[int, ...]) -> bool:
        """Whether the parameter can be used as it is, with nothing to compute."""
        raise NotImplementedError

    def _merged(self, match: _Joined) -> list[_Array]:
        """The new scale, and the new bias if there is one."""
        raise NotImplementedError

    def rewrite(self, match: _Joined, rewriter: Rewriter) -> None:
        normalization = match.normalization
        shape = static_shape(normalization.inputs[1])
        assert shape is not None
        if self._takes_place(match, shape):
            parameters = self._placed(match)
        else:
            names = ("scale", "bias")
            hints = [f"{match.node.outputs[0].name}_{name}" for name in names]
            merged = self._merged(match)
            parameters = [
                rewriter.initializer(array, hint)
                for array, hint in zip(merged, hints, strict=False)
            ]
        old = match.node.outputs[0]
        new = rewriter.op(
            normalization.op_type,
            [normalization.inputs[0], *parameters],
            dict(normalization.attributes),
            like=old,
        )
        rewriter.replace(old, new)

    def _placed(self, match: _Joined) -> list[ir.Value]:
        """The parameters, with the one that is used as it is in its place."""
        raise NotImplementedError


class MergeScale(_MergeParameter):
    """A constant that multiplies a normalization multiplies its scale and bias instead."""

    name = "merge-normalization-scale"
    anchors: ClassVar[tuple[str, ...]] = ("Mul",)
    _operators = ("LayerNormalization", "RMSNormalization", "InstanceNormalization")

    def _takes_place(self, match: _Joined, scale: tuple[int, ...]) -> bool:
        if len(match.normalization.inputs) > 2 or static_shape(match.parameter) != scale:
            return False
        present = constant_array(match.normalization.inputs[1])
        return present is not None and bool((present == 1).all())

    def _placed(self, match: _Joined) -> list[ir.Value]:
        return [match.parameter]

    def _merged(self, match: _Joined) -> list[_Array]:
        return [_combine(match, value, np.multiply) for value in match.normalization.inputs[1:]]


class MergeBias(_MergeParameter):
    """A constant that is added to a normalization is added to its bias instead."""

    name = "merge-normalization-bias"
    anchors: ClassVar[tuple[str, ...]] = ("Add",)
    _operators = ("LayerNormalization", "InstanceNormalization")

    def _takes_place(self, match: _Joined, scale: tuple[int, ...]) -> bool:
        return len(match.normalization.inputs) < 3 and static_shape(match.parameter) == scale

    def _placed(self, match: _Joined) -> list[ir.Value]:
        scale = match.normalization.inputs[1]
        assert scale is not None
        return [scale, match.parameter]

    def _merged(self, match: _Joined) -> list[_Array]:
        inputs = match.normalization.inputs
        scale = constant_array(inputs[1])
        assert scale is not None
        bias = inputs[2] if len(inputs) > 2 else None
        return [scale, _combine(match, bias, np.add)]


def _combine(match: _Joined, value: ir.Value | None, operation: np.ufunc) -> _Array:
    """A parameter of the normalization, and what stands after it, in one array."""
    normalization = match.normalization
    scale = constant_array(normalization.inputs[1])
    size = rank(normalization.inputs[0])
    added = constant_array(match.parameter)
    assert scale is not None
    assert size is not None
    assert added is not None
    slots = _slots(normalization, scale.shape, size)
    assert slots is not None
    present = constant_array(value) if value is not None else np.zeros_like(scale)
    assert present is not None
    wide = np.broadcast_to(_last(added, len(slots)).astype(np.float64), slots)
    with np.errstate(over="ignore"):
        merged: _Array = operation(present.astype(np.float64), wide.reshape(scale.shape))
        return merged.astype(scale.dtype)


def _exclusive_bytes(values: Iterable[ir.Value | None]) -> int:
    """Size of the constants among the values that nothing else reads."""
    tensors = [constant(value) for value in values if value is not None and has_one_use(value)]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _last(array: _Array, count: int) -> _Array:
    """The array without leading axes of length one, such that at most ``count`` axes remain."""
    return array.reshape(array.shape[max(0, array.ndim - count) :])


def _slots(normalization: ir.Node, scale: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """The shape of the scale as it broadcasts to the last axes of a result of rank ``size``."""
    if normalization.op_type == "InstanceNormalization":
        return (scale[0],) + (1,) * (size - 2) if size >= 3 else None
    axis = int_attribute(normalization, "axis", -1)
    count = -axis if axis < 0 else size - axis
    own = dims(normalization.inputs[0])
    # A scale that itself broadcasts, as some runtimes allow, is left alone.
    return scale if own is not None and own[size - count :] == scale else None


def _fits(parameter: tuple[Any, ...], slots: tuple[int, ...]) -> bool:
    """Whether a parameter broadcasts to the slots, and has no other axis longer than one."""
    extra = len(parameter) - len(slots)
    if any(dim != 1 for dim in parameter[: max(0, extra)]):
        return False
    pairs = zip(parameter[::-1], slots[::-1], strict=False)
    return all(dim == 1 or dim == slot for dim, slot in pairs)


@dataclasses.dataclass(frozen=True)
class _Cast:
    up: ir.Node
    normalization: ir.Node
    down: ir.Node


class DropCasts(RewriteRule[_Cast]):
    """float16 that is cast to float32 for a normalization only, and back."""

    name = "drop-casts-around-normalization"
    anchors: ClassVar[tuple[str, ...]] = ("Cast",)
    depth = 2

    def match(self, node: ir.Node, context: Context) -> _Cast | None:
        normalization = made_by(node.inputs[0], "LayerNormalization", "RMSNormalization")
        up = None if normalization is None else made_by(normalization.inputs[0], "Cast")
        if normalization is None or up is None:
            return None
        if int_attribute(node, "to", 0) != ir.DataType.FLOAT16:
            return None
        source = up.inputs[0]
        if source is None or source.dtype != ir.DataType.FLOAT16:
            return None
        if int_attribute(up, "to", 0) != ir.DataType.FLOAT:
            return None
        return _Cast(up, normalization, node)

    def check(self, match: _Cast, context: Context) -> str | None:
        normalization, source = match.normalization, match.up.inputs[0]
        if not has_one_use(normalization.outputs[0]) or len(normalization.outputs) > 1:
            return "an intermediate result is used elsewhere"
        if int_attribute(normalization, "stash_type", 1) != ir.DataType.FLOAT:
            return "the normalization does not compute in float32"
        for value in normalization.inputs[1:]:
            array = constant_array(value)
            if array is None:
                return "the scale or the bias is not constant"
            with np.errstate(over="ignore"):
                exact = array.astype(np.float16).astype(np.float32) == array
            if not exact.all():
                return "the scale or the bias is not exact in float16"
        assert source is not None
        return not_worth(normalization.op_type, source, context, match.down)

    def rewrite(self, match: _Cast, rewriter: Rewriter) -> None:
        inputs = [match.up.inputs[0]]
        for value in match.normalization.inputs[1:]:
            array = constant_array(value)
            assert array is not None
            assert value is not None
            inputs.append(rewriter.initializer(array.astype(np.float16), f"{value.name}_float16"))
        old = match.down.outputs[0]
        attributes = dict(match.normalization.attributes)
        new = rewriter.op(match.normalization.op_type, inputs, attributes, like=old)
        rewriter.replace(old, new)
