"""Reshape, Transpose, Slice and the other operators that only move elements, where they move none.

A symbolic dimension is as good as a number here: the same symbol is the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import axes, int_attribute, ints_attribute
from onnxopt.analysis.filled import holds_shape_of, is_filled_with
from onnxopt.analysis.values import Dim, constant_array, dims, rank, same_dim, static_shape
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule

from .forwarding import ForwardingRule, inferred_to_stay, made_by

__all__ = ["MOVEMENT_RULES"]

#: An end from here on means "to the end": exporters write the largest int32 or int64.
_TO_THE_END = 2**31 - 1

#: The opset from which Reshape takes the shape as an input.
_OPSET_SHAPE_INPUT = 5

_DIM_UNKNOWN = "a dimension is not known to stay"
_SHAPE_UNKNOWN = "the input's shape is not known"


class _Reshape(ForwardingRule):
    """Reshape to the shape that is there already."""

    name = "reshape-to-same-shape"
    anchors: ClassVar[tuple[str, ...]] = ("Reshape",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        if context.opset(node) < _OPSET_SHAPE_INPUT:
            raise Refuse("the shape is an attribute")
        source, shape = node.inputs[:2]
        if source is None:
            return None
        if holds_shape_of(shape, source) or inferred_to_stay(node.outputs[0], source):
            return source
        target, known = constant_array(shape), dims(source)
        if target is None:
            return None
        if known is None:
            raise Refuse(_SHAPE_UNKNOWN)
        copies = int_attribute(node, "allowzero", 0) == 0
        wanted = [int(size) for size in target.reshape(-1)]
        return source if len(wanted) == len(known) and _stays(wanted, known, copies) else None


def _stays(wanted: Sequence[int], known: Sequence[Dim], copies: bool) -> bool:
    """Whether Reshape to the wanted sizes keeps the known ones; ``copies`` says what 0 means.

    One -1 stands for whatever is left, which is the old size if all others keep theirs.
    """
    unknown = False
    for size, dim in zip(wanted, known, strict=True):
        if size == -1 or (size == 0 and copies) or size == dim:
            continue
        if isinstance(dim, int):
            return False
        unknown = True
    if unknown:
        raise Refuse(_DIM_UNKNOWN)
    return True


class _Transpose(ForwardingRule):
    """Transpose that changes the place of no axis, or only of axes of size 1."""

    name = "transpose-in-place"
    anchors: ClassVar[tuple[str, ...]] = ("Transpose",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        known = dims(source)
        order = ints_attribute(node, "perm")
        if order is None:
            if known is None:
                raise Refuse(_SHAPE_UNKNOWN)
            order = tuple(reversed(range(len(known))))
        moved = [axis for axis, origin in enumerate(order) if axis != origin]
        if not moved or (known is not None and all(known[axis] == 1 for axis in moved)):
            return source
        return None


class _Expand(ForwardingRule):
    """Expand to the shape that is there already, or by sizes of 1."""

    name = "expand-to-same-shape"
    anchors: ClassVar[tuple[str, ...]] = ("Expand",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source, shape = node.inputs
        if source is None:
            return None
        if holds_shape_of(shape, source) or inferred_to_stay(node.outputs[0], source):
            return source
        length, known = static_shape(shape), dims(source)
        if length is None:
            return None
        if length == (0,):
            return source
        target = constant_array(shape)
        if known is None:
            if is_filled_with(shape, 1):
                raise Refuse(_SHAPE_UNKNOWN)
            return None
        if length[0] > len(known):
            return None
        if is_filled_with(shape, 1):
            return source
        if target is None:
            return None
        aligned = known[len(known) - length[0] :]
        kept = all(int(size) in (1, dim) for size, dim in zip(target, aligned, strict=True))
        return source if kept else None


class _Tile(ForwardingRule):
    """Tile that repeats nothing."""

    name = "tile-once"
    anchors: ClassVar[tuple[str, ...]] = ("Tile",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        return node.inputs[0] if is_filled_with(node.inputs[1], 1) else None


class _Pad(ForwardingRule):
    """Pad, in any mode, by zero elements."""

    name = "pad-nothing"
    anchors: ClassVar[tuple[str, ...]] = ("Pad",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        pads = ints_attribute(node, "pads")
        if pads is None:
            if len(node.inputs) < 2 or not is_filled_with(node.inputs[1], 0):
                return None
        elif any(pads):
            return None
        return node.inputs[0]


class _Slice(ForwardingRule):
    """Slice that takes everything, in order."""

    name = "slice-everything"
    anchors: ClassVar[tuple[str, ...]] = ("Slice",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        if source is None:
            return None
        has_steps = len(node.inputs) > 4 and node.inputs[4] is not None
        if has_steps and not is_filled_with(node.inputs[4], 1):
            return None
        if inferred_to_stay(node.outputs[0], source):
            return source
        starts = _numbers(node, "starts", 1)
        ends = _numbers(node, "ends", 2)
        if starts is None or ends is None:
            return None
        which = _numbers(node, "axes", 3)
        if which is None:
            if len(node.inputs) > 3 and node.inputs[3] is not None:
                return None
            which = tuple(range(len(starts)))
        known = dims(source)
        for axis, start, end in zip(which, starts, ends, strict=True):
            dim = known[axis] if known is not None else None
            if isinstance(dim, int):
                if start > -dim and start != 0:
                    return None
                if end < dim:
                    return None
            elif start == 0 and 0 < end < _TO_THE_END:
                raise Refuse(_DIM_UNKNOWN)
            elif start != 0 or end < _TO_THE_END:
                return None
        return source


def _numbers(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """Integers that are an attribute in old opsets and an input in newer; None when not known."""
    given = ints_attribute(node, name)
    if given is not None or len(node.inputs) <= index:
        return given
    array = constant_array(node.inputs[index])
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


class _EmptyOperands(NamedTuple):
    node: ir.Node
    kept: list[ir.Value | None]


class _ConcatEmpty(RewriteRule[_EmptyOperands]):
    """Concat needs no operand that has no elements along the axis."""

    name = "concat-nothing"
    anchors: ClassVar[tuple[str, ...]] = ("Concat",)

    def match(self, node: ir.Node, context: Context) -> _EmptyOperands | None:
        axis = int_attribute(node, "axis", 1)
        kept = [value for value in node.inputs if not _is_empty_along(value, axis)]
        kept = kept or list(node.inputs[:1])
        return _EmptyOperands(node, kept) if len(kept) < len(node.inputs) else None

    def rewrite(self, match: _EmptyOperands, rewriter: Rewriter) -> None:
        rewriter.set_inputs(match.node, match.kept)


def _is_empty_along(value: ir.Value | None, axis: int) -> bool:
    known = dims(value)
    return known is not None and -len(known) <= axis < len(known) and known[axis] == 0


class _Split(ForwardingRule):
    """Split into one piece."""

    name = "split-into-one"
    anchors: ClassVar[tuple[str, ...]] = ("Split",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        return node.inputs[0] if len(node.outputs) == 1 else None


class _Squeeze(ForwardingRule):
    """Squeeze where no axis has size 1, or of the axes that an Unsqueeze has just put in."""

    name = "squeeze-back"
    anchors: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        given = axes(node)
        if not given:
            known = dims(source)
            if known is None:
                raise Refuse(_SHAPE_UNKNOWN)
            if 1 in known:
                return None
            if any(not isinstance(dim, int) for dim in known):
                raise Refuse("a dimension may be one")
            return source
        inner = made_by(source, "Unsqueeze")
        if inner is None or not _same_axes(given, axes(inner), rank(source)):
            return None
        return inner.inputs[0]


class _Unsqueeze(ForwardingRule):
    """Unsqueeze of no axes, or of the axes that a Squeeze has just taken out."""

    name = "unsqueeze-back"
    anchors: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        given = axes(node)
        if not given:
            return node.inputs[0] if given == () else None
        inner = made_by(node.inputs[0], "Squeeze")
        if inner is None:
            return None
        source = inner.inputs[0]
        taken = axes(inner)
        if not taken:
            shape = static_shape(source)
            if shape is None:
                raise Refuse("which axes are squeezed is not known")
            taken = tuple(axis for axis, size in enumerate(shape) if size == 1)
        return source if _same_axes(given, taken, rank(source)) else None


def _same_axes(one: Sequence[int], other: Sequence[int] | None, of_rank: int | None) -> bool:
    """Whether two lists of axes, both counted in the same tensor, name the same ones."""
    if other is None:
        return False
    if of_rank:
        one, other = [axis % of_rank for axis in one], [axis % of_rank for axis in other]
    return sorted(one) == sorted(other)


class _Flatten(ForwardingRule):
    """Flatten of a matrix into itself."""

    name = "flatten-matrix"
    anchors: ClassVar[tuple[str, ...]] = ("Flatten",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        known = dims(source)
        if known is None:
            raise Refuse(_SHAPE_UNKNOWN)
        if len(known) != 2:
            return None
        axis = int_attribute(node, "axis", 1)
        kept = (known[0] == 1, True, known[1] == 1)  # at axis 0 the first size becomes 1, ...
        return source if kept[axis + 2 if axis < 0 else axis] else None


class _Blocks(ForwardingRule):
    """DepthToSpace and SpaceToDepth with blocks of one element."""

    name = "blocks-of-one"
    anchors: ClassVar[tuple[str, ...]] = ("DepthToSpace", "SpaceToDepth")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        return node.inputs[0] if int_attribute(node, "blocksize", 0) == 1 else None


class _Gather(ForwardingRule):
    """Gather of 0, 1, 2, ... up to the size of the axis."""

    name = "gather-everything"
    anchors: ClassVar[tuple[str, ...]] = ("Gather",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source, indices = node.inputs
        length = static_shape(indices)
        if length is None or len(length) != 1:
            return None
        known, axis = dims(source), int_attribute(node, "axis", 0)
        if known is None or not same_dim(known[axis], length[0]):
            return None
        array = constant_array(indices)
        return source if array is not None and np.array_equal(array, range(length[0])) else None


#: In the order in which they are tried.
MOVEMENT_RULES: tuple[RewriteRule[Any], ...] = (
    _Reshape(),
    _Transpose(),
    _Expand(),
    _Tile(),
    _Pad(),
    _Slice(),
    _ConcatEmpty(),
    _Split(),
    _Squeeze(),
    _Unsqueeze(),
    _Flatten(),
    _Blocks(),
    _Gather(),
)
