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
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import constant_input, int_attribute, ints_attribute
from onnxopt.analysis.values import constant_array, has_one_use, rank
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule, can_replace

from ._slice_algebra import AxisSlice, composed, read_slices, size_of_axis

__all__ = ["MergeSlices"]

_READ_ELSEWHERE = "the value between is read elsewhere"
_MADE_ELSEWHERE = "it names a graph output that is made elsewhere"
#: Composed indices may be larger than those they come from, up to so many.
_FEW_INDICES = 64


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and is_standard(node) else None


def _write_slice(
    source: ir.Value, slices: Mapping[int, AxisSlice], node: ir.Node, rewriter: Rewriter
) -> ir.Value:
    """Insert a Slice with the same result as a node."""
    output = node.outputs[0]
    axes = sorted(slices)
    columns = {
        "starts": [slices[axis].start for axis in axes],
        "ends": [slices[axis].end for axis in axes],
        "axes": axes,
        "steps": [slices[axis].step for axis in axes],
    }
    steps = columns.pop("steps")
    if rewriter.context.opset(node) < 10:
        return rewriter.op("Slice", [source], columns, like=output)
    if any(step != 1 for step in steps):
        columns["steps"] = steps
    constants = [
        rewriter.initializer(np.array(numbers, np.int64), f"{output.name}_{name}")
        for name, numbers in columns.items()
    ]
    return rewriter.op("Slice", [source, *constants], like=output)


# Slice of Slice


@dataclasses.dataclass(frozen=True)
class _Slices:
    """A Slice of a source that does what a node does."""

    node: ir.Node
    source: ir.Value
    slices: dict[int, AxisSlice]


class _SliceOfSlice(RewriteRule[_Slices]):
    """One Slice in place of two."""

    name = "merge-slices"
    anchors: ClassVar[tuple[str, ...]] = ("Slice",)

    def match(self, node: ir.Node, context: Context) -> _Slices | None:
        inner = _producer(node.inputs[0], "Slice")
        source = None if inner is None else inner.inputs[0]
        if inner is None or source is None:
            return None
        slices = read_slices(inner, context.opset(inner))
        for axis, second in read_slices(node, context.opset(node)).items():
            first = slices.get(axis)
            slices[axis] = (
                second if first is None else composed(first, second, size_of_axis(source, axis))
            )
        return _Slices(node, source, slices)

    def check(self, match: _Slices, context: Context) -> str | None:
        middle = match.node.inputs[0]
        assert middle is not None
        return None if has_one_use(middle) else _READ_ELSEWHERE

    def rewrite(self, match: _Slices, rewriter: Rewriter) -> None:
        merged = _write_slice(match.source, match.slices, match.node, rewriter)
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
        inner = _producer(node.inputs[0], "Gather")
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


# Concat of Split


def _concat_axis(node: ir.Node) -> int:
    """The axis of Concat or Split, counted from the front."""
    axis = int_attribute(node, "axis", 0)
    if axis < 0:
        width = rank(node.outputs[0])
        if width is None:
            width = rank(node.inputs[0])
        if width is None:
            raise Refuse("the rank is not known")
        axis += width
    return axis


@dataclasses.dataclass(frozen=True)
class _Forward:
    """A value that an output of a node can be replaced by."""

    output: ir.Value
    source: ir.Value


class _ConcatOfSplit(RewriteRule[_Forward]):
    """Concat of all pieces is the whole."""

    name = "drop-split-and-concat"
    anchors: ClassVar[tuple[str, ...]] = ("Concat",)

    def match(self, node: ir.Node, context: Context) -> _Forward | None:
        split = _producer(node.inputs[0], "Split")
        if split is None or list(node.inputs) != list(split.outputs):
            return None
        source = split.inputs[0]
        if source is None or _concat_axis(split) != _concat_axis(node):
            return None
        return _Forward(node.outputs[0], source)

    def check(self, match: _Forward, context: Context) -> str | None:
        return None if can_replace(match.output, match.source) else _MADE_ELSEWHERE

    def rewrite(self, match: _Forward, rewriter: Rewriter) -> None:
        rewriter.replace(match.output, match.source)


# Slice and Split of Concat


def _ends(concat: ir.Node, axis: int) -> list[int]:
    """Where each input of a Concat ends, as far as the sizes are known from the front."""
    ends: list[int] = []
    total = 0
    for value in concat.inputs:
        size = size_of_axis(value, axis)
        if size is None:
            break
        total += size
        ends.append(total)
    return ends


class _SliceOfConcat(RewriteRule[_Slices]):
    """Slice the one input of the Concat that the Slice takes from."""

    name = "slice-before-concat"
    anchors: ClassVar[tuple[str, ...]] = ("Slice",)

    def match(self, node: ir.Node, context: Context) -> _Slices | None:
        concat = _producer(node.inputs[0], "Concat")
        if concat is None:
            return None
        axis = _concat_axis(concat)
        slices = read_slices(node, context.opset(node))
        along = slices.get(axis)
        if along is None:
            return None
        picked = self._picked(along, concat, axis)
        begin = 0
        for value, end in zip(concat.inputs, _ends(concat, axis), strict=False):
            if value is not None and begin <= picked[0] and picked[-1] < end:
                slices.pop(axis)
                if picked != range(begin, end):
                    slices[axis] = AxisSlice(picked[0] - begin, picked[-1] + 1 - begin, along.step)
                return _Slices(node, value, slices)
            begin = end
        raise Refuse("it takes from several inputs of the Concat, or their sizes are not known")

    def _picked(self, along: AxisSlice, concat: ir.Node, axis: int) -> range:
        """Indices that are picked from the front, if there are some and they are known."""
        size = size_of_axis(concat.outputs[0], axis)
        if along.step > 0 and (size is not None or 0 <= along.start < along.end):
            known = _ends(concat, axis)
            reach = size if size is not None else (known[-1] if known else 0)
            if size is not None or along.end <= reach:
                picked = along.picked(reach)
                if len(picked) > 0:
                    return picked
        raise Refuse("which elements it takes is not known")

    def check(self, match: _Slices, context: Context) -> str | None:
        if not match.slices and not can_replace(match.node.outputs[0], match.source):
            return _MADE_ELSEWHERE
        return None

    def rewrite(self, match: _Slices, rewriter: Rewriter) -> None:
        if match.slices:
            result = _write_slice(match.source, match.slices, match.node, rewriter)
        else:
            result = match.source
        rewriter.replace(match.node.outputs[0], result)


def _split_sizes(node: ir.Node, axis: int) -> tuple[int, ...]:
    """Sizes of the outputs of a Split.

    Raises:
        Refuse: When they are not known.
    """
    given = ints_attribute(node, "split")
    if given is None:
        given = constant_input(node, 1, "a size")
    if given is not None:
        return given
    size, count = size_of_axis(node.inputs[0], axis), len(node.outputs)
    if size is None:
        raise Refuse("the sizes of the pieces are not known")
    piece = -(-size // count)  # the last one may be smaller (Split-18)
    return (piece,) * (count - 1) + (size - piece * (count - 1),)


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Each output of a Split is one input of the Concat before it."""

    split: ir.Node
    sources: tuple[ir.Value, ...]


class _SplitOfConcat(RewriteRule[_Pieces]):
    """The pieces of a Concat are its inputs."""

    name = "drop-concat-and-split"
    anchors: ClassVar[tuple[str, ...]] = ("Split",)

    def match(self, node: ir.Node, context: Context) -> _Pieces | None:
        concat = _producer(node.inputs[0], "Concat")
        if concat is None or len(concat.inputs) != len(node.outputs):
            return None
        axis = _concat_axis(concat)
        if axis != _concat_axis(node):
            return None
        sizes = _split_sizes(node, axis)
        sources = [value for value in concat.inputs if value is not None]
        if len(sources) != len(sizes):
            return None
        for value, size in zip(sources, sizes, strict=True):
            if size_of_axis(value, axis) != size:
                raise Refuse("the pieces are not the inputs, or their sizes are not known")
        return _Pieces(node, tuple(sources))

    def check(self, match: _Pieces, context: Context) -> str | None:
        pairs = list(zip(match.split.outputs, match.sources, strict=True))
        given_out = [source for output, source in pairs if output.is_graph_output()]
        if len(set(given_out)) < len(given_out) or not all(can_replace(*pair) for pair in pairs):
            return _MADE_ELSEWHERE
        return None

    def rewrite(self, match: _Pieces, rewriter: Rewriter) -> None:
        for output, source in zip(match.split.outputs, match.sources, strict=True):
            rewriter.replace(output, source)


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
            _SliceOfConcat(),
            _GatherOfGather(),
            _ConcatOfSplit(),
            _SplitOfConcat(),
            _SlicesAreSplit(),
        ]
