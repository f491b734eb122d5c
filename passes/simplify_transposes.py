"""Write a Transpose between two views as the Transpose that they are together.

PyTorch's exporter turns ``k.transpose(-1, -2)`` of keys [batch, heads, places, depth] into Reshape
to [batch * heads, places, depth], Transpose (0, 2, 1) and Reshape to [batch, heads, depth, places].
The order of elements is that of ``Transpose(perm = [0, 1, 3, 2])``: the leading axes are merged,
the rest is permuted behind them, and the leading axes come back as they were.

Exact: elements move, nothing is computed. Left alone: a first view that does more than merge
leading axes or a Transpose that moves these, sizes that cannot be shown to be equal, and values
between that are read elsewhere (they would be made twice).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import ints_attribute
from onnxopt.analysis.expressions import Expression
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.values import has_one_use
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule

__all__ = ["SimplifyTransposes"]


@dataclasses.dataclass(frozen=True)
class _Match:
    """Views around a Transpose.

    Attributes:
        source: What the first one views.
        inner: The values in between.
        output: What the last one makes.
        perm: The permutation that they are together.
    """

    source: ir.Value
    inner: tuple[ir.Value, ir.Value]
    output: ir.Value
    perm: tuple[int, ...]


class _TransposeBetweenViews(RewriteRule[_Match]):
    """Reshape, Transpose, Reshape that only permutes trailing axes."""

    name = "transpose-between-views"
    anchors: ClassVar[tuple[str, ...]] = ("Reshape",)

    def match(self, node: ir.Node, context: Context) -> _Match | None:
        turned = node.inputs[0]
        transpose = _producer(turned, "Transpose")
        if turned is None or transpose is None:
            return None
        merged = transpose.inputs[0]
        view = _producer(merged, "Reshape")
        if merged is None or view is None:
            return None
        facts, output, source = SymbolicFacts(), node.outputs[0], view.inputs[0]
        given = facts.shape(source)
        between, made = _sizes(view, facts), _sizes(node, facts)
        if source is None or given is None or between is None or made is None:
            return None
        leading = len(given) - len(between) + 1
        perm = ints_attribute(transpose, "perm") or tuple(reversed(range(len(between))))
        if leading < 2 or len(made) != len(given) or perm[0] != 0:
            return None
        if not _same(given[leading:], between[1:]):
            return None
        whole = (*range(leading), *(axis + leading - 1 for axis in perm[1:]))
        if not _same([given[axis] for axis in whole], made):
            return None
        return _Match(source, (merged, turned), output, whole)

    def check(self, match: _Match, context: Context) -> str | None:
        if not all(map(has_one_use, match.inner)):
            return "a value between is read elsewhere"
        return None

    def rewrite(self, match: _Match, rewriter: Rewriter) -> None:
        new = rewriter.op("Transpose", [match.source], {"perm": match.perm}, like=match.output)
        rewriter.replace(match.output, new)


def _sizes(view: ir.Node, facts: SymbolicFacts) -> list[set[Expression]] | None:
    """What is known of the shape that a Reshape makes: from its result, and from its target."""
    shape = facts.shape(view.outputs[0])
    if shape is None or len(view.inputs) < 2:
        return None
    target = facts.integers(view.inputs[1])
    sizes = [{each} for each in shape]
    if target is not None:
        for size, asked in zip(sizes, target.elements, strict=True):
            if asked.constant is None or asked.constant > 0:
                size.add(asked)
    return sizes


def _same(sizes: Sequence[Expression], known: Sequence[set[Expression]]) -> bool:
    return all(one in others for one, others in zip(sizes, known, strict=True))


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and is_standard(node) else None


class SimplifyTransposes(RewritePass):
    """Write a Transpose between two views as one Transpose."""

    name = "simplify-transposes"

    def rules(self) -> list[RewriteRule[Any]]:
        """One rule."""
        return [_TransposeBetweenViews()]
