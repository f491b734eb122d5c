"""Merge chains of Reshape, Flatten, Squeeze and Unsqueeze, which all only rename the axes.

- ``Reshape(v(x), s) = Reshape(x, s)`` for any such ``v``, since the order of the elements is the
  same: exact if ``s`` copies nothing from the shape of ``v(x)``. A 0 in ``s`` copies; it is
  replaced by the number that it copies, kept where ``x`` has the same axis at the same place, or
  turned into the -1 that ``s`` leaves free, where the other axes are known not to be 0.
- Chains of Squeeze and Unsqueeze are followed axis by axis: an axis of one element that goes and
  comes back between the same neighbours was never away. What is left is one Squeeze, one Unsqueeze
  or nothing.
- Any chain that ends in Flatten, Squeeze or Unsqueeze and whose result has a shape that a constant
  can spell is one Reshape; a chain that gives back the shape of its input goes.

Left alone: shapes that are only known when the model runs, if a 0 may be among them; axes that
depend on an unknown rank; a middle value that is read elsewhere (in ONNX Runtime a view costs
nothing only while it is the one reader); the two Unsqueeze nodes of the mask of an attention, which
ONNX Runtime matches as exported; and two free axes of which one may be empty (then -1 has
no meaning).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import axes, constant_input, int_attribute
from onnxopt.analysis.values import Dim, dims, has_one_use, rank, same_dim, same_shape
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule, can_replace

__all__ = ["MergeReshapes"]

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class _Views:
    """A view of a view of ``source``."""

    source: ir.Value
    first: ir.Node
    last: ir.Node

    @property
    def output(self) -> ir.Value:
        return self.last.outputs[0]


def _views(node: ir.Node) -> _Views | None:
    value = node.inputs[0]
    first = value.producer() if value is not None else None
    if first is None or first.op_type not in _VIEWS or not is_standard(first):
        return None
    source = first.inputs[0]
    return None if source is None else _Views(source, first, node)


def _middle_is_needed(match: _Views) -> str | None:
    value = match.last.inputs[0]
    assert value is not None
    return None if has_one_use(value) else "the value between is read elsewhere"


class _ForwardSameShape(RewriteRule[_Views]):
    """Drop a chain that gives back the shape it started from."""

    name = "drop-views-without-effect"
    anchors: ClassVar[tuple[str, ...]] = _VIEWS

    def match(self, node: ir.Node, context: Context) -> _Views | None:
        match = _views(node)
        return match if match is not None and same_shape(match.source, match.output) else None

    def check(self, match: _Views, context: Context) -> str | None:
        if not can_replace(match.output, match.source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: _Views, rewriter: Rewriter) -> None:
        rewriter.replace(match.output, match.source)


# Reshape at the end


@dataclasses.dataclass(frozen=True)
class _Target:
    """The shape input of a Reshape that reads the source of a chain directly."""

    views: _Views
    shape: tuple[int, ...] | None
    """None: the shape input stays what it is."""


def _without_copies(views: _Views, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape, such that each 0 means the same on the source of the chain; None if unchanged.

    Raises:
        Refuse: When there is no such shape.
    """
    copied = dims(views.last.inputs[0])
    source = dims(views.source)
    target = list(shape)
    unknown: list[int] = []
    for index, size in enumerate(shape):
        if size != 0:
            continue
        known = None if copied is None or index >= len(copied) else copied[index]
        if isinstance(known, int) and known != 0:
            target[index] = known
        elif source is None or index >= len(source) or not same_dim(source[index], known):
            unknown.append(index)
    if unknown:
        free = [index for index, size in enumerate(target) if size <= 0]
        if free != unknown or len(unknown) > 1:
            raise Refuse("a 0 of the shape copies an axis that the source does not have there")
        target[unknown[0]] = -1
    return None if tuple(target) == shape else tuple(target)


class _ReshapeOfView(RewriteRule[_Target]):
    """Reshape the source of a view."""

    name = "merge-into-reshape"
    anchors: ClassVar[tuple[str, ...]] = ("Reshape",)

    def match(self, node: ir.Node, context: Context) -> _Target | None:
        views = _views(node)
        if views is None:
            return None
        if int_attribute(node, "allowzero", 0) == 1:
            return _Target(views, None)
        shape = constant_input(node, 1, "the shape")
        if shape is None:
            raise Refuse("the shape is missing")
        return _Target(views, _without_copies(views, shape))

    def check(self, match: _Target, context: Context) -> str | None:
        return _middle_is_needed(match.views)

    def rewrite(self, match: _Target, rewriter: Rewriter) -> None:
        node = match.views.last
        rewriter.replace_input(node, 0, match.views.source)
        if match.shape is not None:
            rewriter.replace_input(node, 1, _shape_value(match.shape, node, rewriter))


def _shape_value(shape: tuple[int, ...], node: ir.Node, rewriter: Rewriter) -> ir.Value:
    return rewriter.initializer(np.array(shape, np.int64), f"{node.outputs[0].name}_shape")


# Squeeze and Unsqueeze


def _nonnegative(given: tuple[int, ...], known: int | None) -> tuple[int, ...]:
    if any(axis < 0 for axis in given):
        if known is None:
            raise Refuse("the rank is not known")
        return tuple(axis % known for axis in given)
    return given


def _squeezed(node: ir.Node) -> tuple[int, ...]:
    """Axes that a Squeeze takes away, in order."""
    given = axes(node)
    if given is not None:
        return tuple(sorted(_nonnegative(given, rank(node.inputs[0]))))
    sizes = dims(node.inputs[0])
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        raise Refuse("which axes Squeeze takes away is not known")
    return tuple(axis for axis, size in enumerate(sizes) if size == 1)


def _unsqueezed(node: ir.Node) -> tuple[int, ...]:
    """Axes of the output that an Unsqueeze adds, in order."""
    given = axes(node)
    if given is None:
        raise Refuse("the axes are missing")
    known = rank(node.outputs[0])
    source = rank(node.inputs[0])
    if known is None and source is not None:
        known = source + len(given)
    return tuple(sorted(_nonnegative(given, known)))


@dataclasses.dataclass(frozen=True)
class _AxisChange:
    """What two nodes do to the axes: one operator with axes, or nothing."""

    views: _Views
    operator: str | None
    axes: tuple[int, ...] = ()


#: An axis of the source by its number, or an axis of one element that was added.
_Axis = int | None


def _follow(views: _Views) -> tuple[list[_Axis], set[int]]:
    """Axes of the result, and axes of the source that went, up to the highest one named."""
    steps = [(node.op_type, _axes_of(node)) for node in (views.first, views.last)]
    # Beyond the named axes nothing changes, however many there are.
    width = sum(1 + (max(named) if named else 0) for _, named in steps) + 1
    current: list[_Axis] = list(range(width))
    gone: set[int] = set()
    for operator, named in steps:
        if operator == "Squeeze":
            gone.update(axis for index in named if (axis := current[index]) is not None)
            current = [axis for index, axis in enumerate(current) if index not in named]
        else:
            for index in named:
                current.insert(index, None)
    return current, gone


def _axes_of(node: ir.Node) -> tuple[int, ...]:
    return _squeezed(node) if node.op_type == "Squeeze" else _unsqueezed(node)


def _is_attention_mask(views: _Views, opset: int) -> bool:
    """Whether ONNX Runtime may fuse an attention whose mask begins here.

    It looks for Unsqueeze along axis 1, Unsqueeze along axis 2, perhaps Cast, and Sub, in opsets
    that have axes as attributes (``MatchInputMaskSubgraph`` in its attention_fusion_helper.h).
    """
    if opset >= 13 or [axes(node) for node in (views.first, views.last)] != [(1,), (2,)]:
        return False
    readers = views.output.consumers()
    if len(readers) == 1 and readers[0].op_type == "Cast":
        readers = readers[0].outputs[0].consumers()
    return any(reader.op_type == "Sub" for reader in readers)


def _axis_change(views: _Views) -> _AxisChange:
    """The single operator that does what both nodes do.

    Between two axes that stay, some axes of one element went and some were added. All axes of one
    element are alike, so only the difference counts.
    """
    current, gone = _follow(views)
    added: list[int] = []  # in the result
    removed: list[int] = []  # in the source
    index, source = 0, 0
    while index < len(current):
        went: list[int] = []
        while source in gone:
            went.append(source)
            source += 1
        came: list[int] = []
        while index < len(current) and current[index] is None:
            came.append(index)
            index += 1
        kept = min(len(went), len(came))
        removed.extend(went[kept:])
        added.extend(came[kept:])
        index, source = index + 1, source + 1
    if added and removed:
        raise Refuse("axes both go and come")
    if not added and not removed:
        return _AxisChange(views, None)
    return _AxisChange(
        views, *(("Unsqueeze", tuple(added)) if added else ("Squeeze", tuple(removed)))
    )


class _MergeAxisChanges(RewriteRule[_AxisChange]):
    """One Squeeze or Unsqueeze, or nothing, in place of two."""

    name = "merge-squeeze-unsqueeze"
    anchors: ClassVar[tuple[str, ...]] = ("Squeeze", "Unsqueeze")

    def match(self, node: ir.Node, context: Context) -> _AxisChange | None:
        views = _views(node)
        if views is None or views.first.op_type not in ("Squeeze", "Unsqueeze"):
            return None
        return _axis_change(views)

    def check(self, match: _AxisChange, context: Context) -> str | None:
        if match.operator is None:
            if not can_replace(match.views.output, match.views.source):
                return "it names a graph output that is made elsewhere"
            return None
        if _is_attention_mask(match.views, context.opset(match.views.last)):
            return "it may be the mask of an attention, which runtimes match as exported"
        return _middle_is_needed(match.views)

    def rewrite(self, match: _AxisChange, rewriter: Rewriter) -> None:
        views = match.views
        if match.operator is None:
            rewriter.replace(views.output, views.source)
            return
        inputs: list[ir.Value | None] = [views.source]
        attributes: dict[str, tuple[int, ...]] = {}
        if rewriter.context.opset(views.last) < 13:
            attributes["axes"] = match.axes
        else:
            array = np.array(match.axes, np.int64)
            inputs.append(rewriter.initializer(array, f"{views.output.name}_axes"))
        merged = rewriter.op(match.operator, inputs, attributes, like=views.output)
        rewriter.replace(views.output, merged)


# Flatten, Squeeze and Unsqueeze at the end, with a Reshape or Flatten before


def _spelled(source: tuple[Dim, ...] | None, output: tuple[Dim, ...] | None) -> tuple[int, ...]:
    """A constant shape input that reshapes one shape into the other, whatever the symbols are.

    Raises:
        Refuse: When there is none.
    """
    if output is None:
        raise Refuse("the shape of the result is not known")
    shape: list[int] = []
    for index, size in enumerate(output):
        if size == 0:
            raise Refuse("the result is empty")
        if isinstance(size, int):
            shape.append(size)
        elif source is not None and index < len(source) and same_dim(source[index], size):
            shape.append(0)
        else:
            shape.append(-1)
    if shape.count(-1) > 1:
        raise Refuse("more than one axis of the result is not known")
    if -1 in shape and 0 in shape:
        raise Refuse("an axis that may be empty stands next to one that is not known")
    return tuple(shape)


class _ViewOfReshape(RewriteRule[_Target]):
    """Write a chain that ends in Flatten, Squeeze or Unsqueeze as one Reshape."""

    name = "merge-as-reshape"
    anchors: ClassVar[tuple[str, ...]] = ("Flatten", "Squeeze", "Unsqueeze")

    def match(self, node: ir.Node, context: Context) -> _Target | None:
        views = _views(node)
        if views is None:
            return None
        return _Target(views, _spelled(dims(views.source), dims(views.output)))

    def check(self, match: _Target, context: Context) -> str | None:
        return _middle_is_needed(match.views)

    def rewrite(self, match: _Target, rewriter: Rewriter) -> None:
        views = match.views
        assert match.shape is not None
        shape = _shape_value(match.shape, views.last, rewriter)
        rewriter.replace(
            views.output, rewriter.op("Reshape", [views.source, shape], like=views.output)
        )


class MergeReshapes(RewritePass):
    """Merge chains of Reshape, Flatten, Squeeze and Unsqueeze."""

    name = "merge-reshapes"

    def rules(self) -> list[RewriteRule[Any]]:
        """From the cheapest result to the dearest: nothing, the same operators, a Reshape."""
        return [_ForwardSameShape(), _ReshapeOfView(), _MergeAxisChanges(), _ViewOfReshape()]
