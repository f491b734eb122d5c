"""Rules for Split and Slice next to a Concat."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import constant_input, int_attribute, ints_attribute
from onnxopt.analysis.values import rank
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule, can_replace

from .selection import MADE_ELSEWHERE, Slices, producer, write_slice
from .slice_algebra import AxisSlice, read_slices, size_of_axis

__all__ = ["ConcatOfSplit", "SliceOfConcat", "SplitOfConcat"]


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


class ConcatOfSplit(RewriteRule[_Forward]):
    """Concat of all pieces is the whole."""

    name = "drop-split-and-concat"
    anchors: ClassVar[tuple[str, ...]] = ("Concat",)

    def match(self, node: ir.Node, context: Context) -> _Forward | None:
        split = producer(node.inputs[0], "Split")
        if split is None or list(node.inputs) != list(split.outputs):
            return None
        source = split.inputs[0]
        if source is None or _concat_axis(split) != _concat_axis(node):
            return None
        return _Forward(node.outputs[0], source)

    def check(self, match: _Forward, context: Context) -> str | None:
        return None if can_replace(match.output, match.source) else MADE_ELSEWHERE

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


class SliceOfConcat(RewriteRule[Slices]):
    """Slice the one input of the Concat that the Slice takes from."""

    name = "slice-before-concat"
    anchors: ClassVar[tuple[str, ...]] = ("Slice",)

    def match(self, node: ir.Node, context: Context) -> Slices | None:
        concat = producer(node.inputs[0], "Concat")
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
                return Slices(node, value, slices)
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

    def check(self, match: Slices, context: Context) -> str | None:
        if not match.slices and not can_replace(match.node.outputs[0], match.source):
            return MADE_ELSEWHERE
        return None

    def rewrite(self, match: Slices, rewriter: Rewriter) -> None:
        if match.slices:
            result = write_slice(match.source, match.slices, match.node, rewriter)
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


class SplitOfConcat(RewriteRule[_Pieces]):
    """The pieces of a Concat are its inputs."""

    name = "drop-concat-and-split"
    anchors: ClassVar[tuple[str, ...]] = ("Split",)

    def match(self, node: ir.Node, context: Context) -> _Pieces | None:
        concat = producer(node.inputs[0], "Concat")
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
            return MADE_ELSEWHERE
        return None

    def rewrite(self, match: _Pieces, rewriter: Rewriter) -> None:
        for output, source in zip(match.split.outputs, match.sources, strict=True):
            rewriter.replace(output, source)
