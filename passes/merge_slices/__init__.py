"""Merge what selects from tensors: Slice of Slice, Gather of Gather, Split and Concat.

- ``Slice(Slice(x))`` is one Slice: along different axes always, along the same axis where the
  numbers compose. With a known size any two do; without, slices that count from the front
  (``x[a:b][c:d] = x[a+c:min(b, a+d)]``, and steps multiply) or whose ends both count from the back
  (``x[a:-b][c:-d] = x[a+c:-(b+d)]``).
- ``Gather(Gather(x, i), j) = Gather(x, i[j])`` with constant indices.
- Concat of all outputs of a Split, in order, is what was split.
- Slice or Split of a Concat that takes whole inputs of it takes those; a Slice within one input
  slices that one.
- Slices that cut an axis of known size into pieces are one Split.

Exact. Left alone: bounds and indices that are only known when the model runs, or whose meaning
depends on a size that is not known; a middle value that is read elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant_array, has_one_use, rank
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule

from .concat_selection import ConcatOfSplit, SliceOfConcat, SplitOfConcat
from .selection import Slices, producer, write_slice
from .slice_algebra import composed, read_slices, size_of_axis

__all__ = ["MergeSlices"]

_READ_ELSEWHERE = "the value between is read elsewhere"
#: Composed indices may be larger than those they come from, up to so many.
_FEW_INDICES = 64


# Slice of Slice


class _SliceOfSlice(RewriteRule[Slices]):
    """One Slice in place of two."""

    name = "merge-slices"
    anchors: ClassVar[tuple[str, ...]] = ("Slice",)

    def match(self, node: ir.Node, context: Context) -> Slices | None:
        inner = producer(node.inputs[0], "Slice")
        source = None if inner is None else inner.inputs[0]
        if inner is None or source is None:
            return None
        slices = read_slices(inner, context.opset(inner))
        for axis, second in read_slices(node, context.opset(node)).items():
            first = slices.get(axis)
            slices[axis] = (
                second if first is None else composed(first, second, size_of_axis(source, axis))
            )
        return Slices(node, source, slices)

    def check(self, match: Slices, context: Context) -> str | None:
        middle = match.node.inputs[0]
        assert middle is not None
        return None if has_one_use(middle) else _READ_ELSEWHERE

    def rewrite(self, match: Slices, rewriter: Rewriter) -> None:
        merged = write_slice(match.source, match.slices, match.node, rewriter)
        rewriter.replace(match.node.outputs[0], merged)


# Gather of Gather


@dataclasses.dataclass(frozen=True)
class _Gathers:
    node: ir.Node
    source: ir.Value
    axis: int
    indices: np.ndarray[Any, Any]


class _GatherOfGather(RewriteRule[_Gathers]):
    """One Gather in place of two along the same axis."""

    name = "merge-gathers"
    anchors: ClassVar[tuple[str, ...]] = ("Gather",)

    def match(self, node: ir.Node, context: Context) -> _Gathers | None:
        inner = producer(node.inputs[0], "Gather")
        source = None if inner is None else inner.inputs[0]
        if inner is None or source is None:
            return None
        first, second = constant_array(inner.inputs[1]), constant_array(node.inputs[1])
        if first is None or second is None:
            raise Refuse("the indices are not constant")
        axis = self._axis(inner, source)
        place = self._axis(node, inner.outputs[0]) - axis
        if not 0 <= place < first.ndim:
            raise Refuse("they gather along different axes")
        size = first.shape[place]
        if second.size and not (-size <= second.min() and second.max() < size):
            raise Refuse("an index is out of range")
        return _Gathers(node, source, axis, np.take(first, second, axis=place))

    def _axis(self, node: ir.Node, source: ir.Value) -> int:
        axis, width = int_attribute(node, "axis", 0), rank(source)
        if axis < 0 and width is None:
            raise Refuse("the rank is not known")
        return axis if axis >= 0 else axis + (width or 0)

    def check(self, match: _Gathers, context: Context) -> str | None:
        middle = match.node.inputs[0]
        assert middle is not None
        if not has_one_use(middle):
            return _READ_ELSEWHERE
        inner = middle.producer()
        assert inner is not None
        before = [constant_array(each.inputs[1]) for each in (inner, match.node)]
        if match.indices.size > max(_FEW_INDICES, *(a.size for a in before if a is not None)):
            return "the indices would grow"
        return None

    def rewrite(self, match: _Gathers, rewriter: Rewriter) -> None:
        output = match.node.outputs[0]
        indices = rewriter.initializer(match.indices, f"{output.name}_indices")
        merged = rewriter.op("Gather", [match.source, indices], {"axis": match.axis}, like=output)
        rewriter.replace(output, merged)


# Slices that cut an axis into pieces


@dataclasses.dataclass(frozen=True)
class _Partition:
    """Slices of one value that cut an axis into pieces, in the order of the pieces."""

    source: ir.Value
    axis: int
    slices: tuple[ir.Node, ...]
    sizes: tuple[int, ...]


class _SlicesAreSplit(RewriteRule[_Partition]):
    """One Split in place of Slices that cut an axis into pieces."""

    name = "write-split"
    anchors: ClassVar[tuple[str, ...]] = ("Slice",)

    def match(self, node: ir.Node, context: Context) -> _Partition | None:
        source = node.inputs[0]
        if source is None:
            return None
        others = [each for each, index in source.uses() if index == 0 and _is_slice(each)]
        if len(others) < 2 or node is not others[0]:
            return None  # one of them speaks for all
        parts: list[tuple[range, ir.Node]] = []
        slices = read_slices(node, context.opset(node))
        if len(slices) != 1:
            return None
        ((axis, _),) = slices.items()
        size = size_of_axis(source, axis)
        if size is None:
            raise Refuse("the size of the axis is not known")
        for each in others:
            own = read_slices(each, context.opset(each))
            if each.graph is not node.graph or list(own) != [axis] or own[axis].step != 1:
                return None
            parts.append((own[axis].picked(size), each))
        parts.sort(key=lambda part: (part[0].start, part[0].stop))
        begins = [picked.start for picked, _ in parts]
        ends = [picked.stop for picked, _ in parts]
        if [0, *ends] != [*begins, size] or any(len(picked) == 0 for picked, _ in parts):
            return None
        sizes = tuple(len(picked) for picked, _ in parts)
        return _Partition(source, axis, tuple(each for _, each in parts), sizes)

    def rewrite(self, match: _Partition, rewriter: Rewriter) -> None:
        first = _first(match.slices)
        rewriter.insert_before(first)
        opset = rewriter.context.opset(first)
        inputs: list[ir.Value | None] = [match.source]
        attributes: dict[str, Any] = {"axis": match.axis}
        if opset < 13:
            attributes["split"] = match.sizes
        else:
            array = np.array(match.sizes, np.int64)
            inputs.append(rewriter.initializer(array, f"{match.source.name}_sizes"))
        pieces = rewriter.ops("Split", inputs, attributes, len(match.slices))
        for node, piece in zip(match.slices, pieces, strict=True):
            rewriter.replace(node.outputs[0], piece)


def _is_slice(node: ir.Node) -> bool:
    return node.op_type == "Slice" and is_standard(node)


def _first(nodes: Sequence[ir.Node]) -> ir.Node:
    """The node that stands before the others in their graph."""
    graph, wanted = nodes[0].graph, set(nodes)
    assert graph is not None
    return next(node for node in graph if node in wanted)


class MergeSlices(RewritePass):
    """Merge what selects from tensors: Slice of Slice, Gather of Gather, Split and Concat."""

    name = "merge-slices"

    def rules(self) -> list[RewriteRule[Any]]:
        """Merging before splitting: what is left then may be a partition."""
        return [
            _SliceOfSlice(),
            SliceOfConcat(),
            _GatherOfGather(),
            ConcatOfSplit(),
            SplitOfConcat(),
            _SlicesAreSplit(),
        ]
