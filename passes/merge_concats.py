"""Flatten Concat of Concat, and join constants that stand next to each other.

``Concat(a, Concat(b, c), d) = Concat(a, b, c, d)`` along one axis, and two neighbouring constants
are one constant. Concatenation copies each element once less.

Exact. Left alone: an inner Concat that is read elsewhere (its elements would be copied twice) or
that joins along another axis, axes whose equality depends on an unknown rank, constants that
others read too (they would be stored twice), and 64-bit integers: those are shapes being put
together, of which runtimes match the pieces one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant, constant_array, has_one_use, is_constant, rank
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule

__all__ = ["MergeConcats"]


def _axis(node: ir.Node) -> int:
    if "axis" not in node.attributes:
        raise Refuse("the axis is missing")
    return int_attribute(node, "axis", 0)


def _same_axis(first: ir.Node, second: ir.Node) -> bool:
    """Whether two Concat nodes, one of them reading the other, join along the same axis."""
    one, other = _axis(first), _axis(second)
    if (one < 0) == (other < 0):
        return one == other
    known = rank(first.outputs[0])
    if known is None:
        known = rank(second.outputs[0])
    if known is None:
        raise Refuse("the rank is not known")
    return one % known == other % known


@dataclasses.dataclass(frozen=True)
class _Nested:
    outer: ir.Node
    inner: ir.Node
    index: int


class _FlattenConcats(RewriteRule[_Nested]):
    """Read the inputs of an inner Concat directly."""

    name = "flatten-concat"
    anchors: ClassVar[tuple[str, ...]] = ("Concat",)

    def match(self, node: ir.Node, context: Context) -> _Nested | None:
        reasons: list[str] = []
        for index, value in enumerate(node.inputs):
            inner = value.producer() if value is not None else None
            if inner is None or inner.op_type != "Concat" or not is_standard(inner):
                continue
            reason = self._why_not(node, inner)
            if reason is None:
                return _Nested(node, inner, index)
            reasons.append(reason)
        if reasons:
            raise Refuse(reasons[0])
        return None

    def _why_not(self, outer: ir.Node, inner: ir.Node) -> str | None:
        if not _same_axis(outer, inner):
            return "they join along different axes"
        if not has_one_use(inner.outputs[0]):
            return "the inner one is read elsewhere"
        return "they stand in different graphs" if inner.graph is not outer.graph else None

    def rewrite(self, match: _Nested, rewriter: Rewriter) -> None:
        inputs = list(match.outer.inputs)
        inputs[match.index : match.index + 1] = match.inner.inputs
        output = match.outer.outputs[0]
        joined = rewriter.op("Concat", inputs, dict(match.outer.attributes), like=output)
        rewriter.replace(output, joined)


@dataclasses.dataclass(frozen=True)
class _Run:
    """Inputs ``start`` to ``stop`` of a Concat are constants."""

    node: ir.Node
    start: int
    stop: int


def _runs(node: ir.Node) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(node.inputs):
        stop = start
        while stop < len(node.inputs) and is_constant(node.inputs[stop]):
            stop += 1
        if stop - start > 1:
            yield start, stop
        start = max(stop, start + 1)


class _JoinConstants(RewriteRule[_Run]):
    """Join constants that are neighbours in a Concat."""

    name = "join-constants"
    anchors: ClassVar[tuple[str, ...]] = ("Concat",)

    def match(self, node: ir.Node, context: Context) -> _Run | None:
        reasons: list[str] = []
        for start, stop in _runs(node):
            if stop - start == len(node.inputs):
                return None  # all constant: that is for constant folding
            values = node.inputs[start:stop]
            if not all(value is not None and has_one_use(value) for value in values):
                reasons.append("a constant is read elsewhere")
                continue
            if any(constant_array(value) is None for value in values):
                reasons.append("a constant holds no numbers")
                continue
            tensors = [constant(value) for value in values]
            types = {tensor.dtype for tensor in tensors if tensor is not None}
            if types == {ir.DataType.INT64}:
                reasons.append("it may put a shape together")
            elif len(types) == 1:
                return _Run(node, start, stop)
        if reasons:
            raise Refuse(reasons[0])
        return None

    def rewrite(self, match: _Run, rewriter: Rewriter) -> None:
        node, axis = match.node, _axis(match.node)
        values = node.inputs[match.start : match.stop]
        arrays = [array for value in values if (array := constant_array(value)) is not None]
        first = values[0]
        assert first is not None
        array = np.concatenate(arrays, axis=axis)
        joined = rewriter.initializer(array, f"{first.name}_joined", like=first)
        inputs = [*node.inputs[: match.start], joined, *node.inputs[match.stop :]]
        output = node.outputs[0]
        rewriter.replace(output, rewriter.op("Concat", inputs, dict(node.attributes), like=output))


class MergeConcats(RewritePass):
    """Flatten Concat of Concat, and join constants that stand next to each other."""

    name = "merge-concats"

    def rules(self) -> list[RewriteRule[Any]]:
        """Flattening first: it brings constants together."""
        return [_FlattenConcats(), _JoinConstants()]
