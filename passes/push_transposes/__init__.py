"""Move Transposes to where they meet and cancel.

Models of frameworks that keep channels last carry a pair of Transposes around each convolution.
Most of what stands between two convolutions (activations, additions, concatenation, padding,
reductions, ...) works as well on permuted axes, so the Transposes in between are not needed.

Three things are done, until none of them finds anything:

- ``Transpose(Transpose(x, p), q) = Transpose(x, p[q])``, and nothing where that is the identity.
- A Transpose goes through Squeeze and Unsqueeze to the side with fewer axes, and into Gemm.
- For each region of operators that do not care for the order of the axes, the choice of layouts
  with the fewest Transposes is found as a minimum cut (`_transpose_choice`) and carried out, if it
  has fewer Transposes and moves no more elements.

Exact: no number changes, only where it is kept. Constants are permuted now; one that others read
too only if it is small, since it is stored twice then.

Left alone: operators that fix the order of the axes (Conv, MatMul, pooling, normalization), or
whose attributes, shapes or constants are not known well enough to adapt them; Reshape, unless all
that moves is axes of one element; a Transpose that would only stand somewhere else. So those around
the two matrix products of an attention stay where runtimes look for them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import axes, int_attribute
from onnxopt.analysis.values import has_one_use
from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import (
    Context,
    Refuse,
    Rewriter,
    RewriteRule,
    can_replace,
    rewrite,
)

from .choice import better_layouts
from .permutations import Permutation, compose, inverse, is_identity, permutation_of
from .regions import Region, find_regions
from .switch import switch

__all__ = ["PushTransposes"]

_REGIONS = "switch-layouts"
#: Each round leaves fewer or smaller Transposes; more rounds than a few are no progress worth it.
_MOST_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A Transpose of a Transpose of ``source`` (or, with no ``first``, of ``source``)."""

    source: ir.Value
    first: ir.Node | None
    last: ir.Node
    perm: Permutation


def _transpose(value: ir.Value | None) -> tuple[ir.Node, ir.Value, Permutation] | None:
    """The Transpose that makes a value, what it transposes, and how."""
    node = None if value is None else value.producer()
    perm = permutation_of(node)
    if node is None or perm is None or node.inputs[0] is None:
        return None
    return node, node.inputs[0], perm


class _Compose(RewriteRule[_Pair]):
    """One Transpose, or none, in place of two."""

    name = "merge-transposes"
    anchors: ClassVar[tuple[str, ...]] = ("Transpose",)

    def match(self, node: ir.Node, context: Context) -> _Pair | None:
        perm, value = permutation_of(node), node.inputs[0]
        if perm is None or value is None:
            return None
        first = _transpose(value)
        if first is not None and len(first[2]) == len(perm):
            return _Pair(first[1], first[0], node, compose(first[2], perm))
        return _Pair(value, None, node, perm) if is_identity(perm) else None

    def check(self, match: _Pair, context: Context) -> str | None:
        if is_identity(match.perm):
            if can_replace(match.last.outputs[0], match.source):
                return None
            return "it names a graph output that is made elsewhere"
        assert match.first is not None
        if not has_one_use(match.first.outputs[0]):
            return "the value between is read elsewhere"
        return None

    def rewrite(self, match: _Pair, rewriter: Rewriter) -> None:
        output = match.last.outputs[0]
        if is_identity(match.perm):
            rewriter.replace(output, match.source)
            return
        merged = rewriter.op("Transpose", [match.source], {"perm": match.perm}, like=output)
        rewriter.replace(output, merged)


@dataclasses.dataclass(frozen=True)
class _Operands:
    """Inputs of a Gemm that are transposed, with what they transpose."""

    node: ir.Node
    sources: dict[int, ir.Value]


class _IntoGemm(RewriteRule[_Operands]):
    """Let Gemm transpose its operands itself."""

    name = "transpose-in-gemm"
    anchors: ClassVar[tuple[str, ...]] = ("Gemm",)

    def match(self, node: ir.Node, context: Context) -> _Operands | None:
        sources: dict[int, ir.Value] = {}
        for index in (0, 1):
            found = _transpose(node.inputs[index])
            if found is not None and found[2] == (1, 0):
                int_attribute(node, "transA" if index == 0 else "transB", 0)
                sources[index] = found[1]
        return _Operands(node, sources) if sources else None

    def rewrite(self, match: _Operands, rewriter: Rewriter) -> None:
        for index, source in match.sources.items():
            name = "transA" if index == 0 else "transB"
            flag = int_attribute(match.node, name, 0)
            rewriter.set_attribute(match.node, name, 1 - flag)
            rewriter.replace_input(match.node, index, source)


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """A Transpose and a Squeeze or Unsqueeze that exchange their places."""

    source: ir.Value
    first: ir.Node
    last: ir.Node
    axes: tuple[int, ...]
    perm: Permutation


def _reduced(perm: Permutation, without: Sequence[int]) -> Permutation:
    """A permutation of the axes that are left when some are taken away."""
    kept = sorted(set(perm) - set(without))
    return tuple(kept.index(axis) for axis in perm if axis not in without)


def _axes(node: ir.Node, width: int) -> tuple[int, ...]:
    given = axes(node)
    if given is None:
        raise Refuse("the axes are not given")
    return tuple(axis % width for axis in given)


class _ThroughSqueeze(RewriteRule[_Exchange]):
    """``Squeeze(Transpose(x)) = Transpose(Squeeze(x))``, with fewer axes to permute."""

    name = "transpose-after-squeeze"
    anchors: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def match(self, node: ir.Node, context: Context) -> _Exchange | None:
        found = _transpose(node.inputs[0])
        if found is None:
            return None
        transpose, source, perm = found
        squeezed = tuple(perm[axis] for axis in _axes(node, len(perm)))
        return _Exchange(source, transpose, node, tuple(sorted(squeezed)), _reduced(perm, squeezed))

    def check(self, match: _Exchange, context: Context) -> str | None:
        if not has_one_use(match.first.outputs[0]):
            return "the value between is read elsewhere"
        return None

    def rewrite(self, match: _Exchange, rewriter: Rewriter) -> None:
        output = match.last.outputs[0]
        squeezed = _with_axes(match, match.source, rewriter)
        result = squeezed
        if not is_identity(match.perm):
            result = rewriter.op("Transpose", [squeezed], {"perm": match.perm})
        squeezed.type = output.type
        rewriter.replace(output, result)


class _ThroughUnsqueeze(RewriteRule[_Exchange]):
    """``Transpose(Unsqueeze(x)) = Unsqueeze(Transpose(x))``, with fewer axes to permute."""

    name = "transpose-before-unsqueeze"
    anchors: ClassVar[tuple[str, ...]] = ("Transpose",)

    def match(self, node: ir.Node, context: Context) -> _Exchange | None:
        perm, value = permutation_of(node), node.inputs[0]
        first = value.producer() if value is not None else None
        if perm is None or first is None or first.op_type != "Unsqueeze":
            return None
        source = first.inputs[0]
        if source is None or not is_standard(first):
            return None
        added = _axes(first, len(perm))
        places = inverse(perm)
        moved = tuple(sorted(places[axis] for axis in added))
        return _Exchange(source, first, node, moved, _reduced(perm, added))

    def check(self, match: _Exchange, context: Context) -> str | None:
        if not has_one_use(match.first.outputs[0]):
            return "the value between is read elsewhere"
        return None

    def rewrite(self, match: _Exchange, rewriter: Rewriter) -> None:
        output, source = match.last.outputs[0], match.source
        if not is_identity(match.perm):
            source = rewriter.op("Transpose", [source], {"perm": match.perm})
            source.type = match.source.type
        rewriter.replace(output, _with_axes(match, source, rewriter))


def _with_axes(match: _Exchange, source: ir.Value, rewriter: Rewriter) -> ir.Value:
    """Insert the Squeeze or Unsqueeze of an exchange with its new axes."""
    node = match.first if match.first.op_type == "Unsqueeze" else match.last
    if "axes" in node.attributes:
        return rewriter.op(node.op_type, [source], {"axes": match.axes})
    array = ir.tensor(list(match.axes), dtype=ir.DataType.INT64).numpy()
    added = rewriter.initializer(array, f"{match.last.outputs[0].name}_axes")
    return rewriter.op(node.op_type, [source, added])


_RULES: tuple[RewriteRule[Any], ...] = (
    _Compose(),
    _IntoGemm(),
    _ThroughSqueeze(),
    _ThroughUnsqueeze(),
)


class PushTransposes(Pass):
    """Move Transposes to where they meet and cancel."""

    name = "push-transposes"

    def run(self, model: ir.Model) -> Outcome:
        """Apply the rules and switch regions, in turn, until neither finds anything."""
        total = Outcome(model, False)
        for _ in range(_MOST_ROUNDS):
            merged = rewrite(model, _RULES, self._left(total))
            _add(total, merged)
            begin = time.perf_counter()
            switched = self._switch_regions(model, self._left(total))
            switched.seconds[_REGIONS] = time.perf_counter() - begin
            _add(total, switched)
            total.refusals = [*merged.refusals, *switched.refusals]
            if not switched.modified:
                break
        return total

    def _left(self, outcome: Outcome) -> int | None:
        """How many changes may still be made."""
        if self.max_rewrites is None:
            return None
        return max(0, self.max_rewrites - outcome.rewritten.total())

    def _switch_regions(self, model: ir.Model, most: int | None) -> Outcome:
        outcome = Outcome(model, False)
        context = Context(model)
        for graph, opset in _graphs(model):
            positions = {node: position for position, node in enumerate(graph)}
            for region in find_regions(graph, opset):
                if most is not None and outcome.rewritten[_REGIONS] >= most:
                    return outcome
                outcome.matched[_REGIONS] += 1
                chosen = better_layouts(region, opset)
                if chosen is None:
                    outcome.refusals.append(_refusal(region))
                    continue
                switch(region, chosen, positions, context)
                outcome.rewritten[_REGIONS] += 1
                outcome.modified = True
        return outcome


def _graphs(model: ir.Model) -> Iterator[tuple[ir.Graph, int]]:
    """All graphs, with the version of the standard operators there."""
    roots = [(model.graph, model.opset_imports)]
    roots.extend((each.graph, each.opset_imports) for each in model.functions.values())
    for root, imports in roots:
        opset = imports.get("", imports.get("ai.onnx", 0))
        for graph in (root, *root.subgraphs()):
            yield graph, opset


def _refusal(region: Region) -> Refusal:
    names = [
        node.name or node.op_type
        for tensor in region.tensors
        for value in tensor.copies
        if value is not tensor.origin and (node := value.producer()) is not None
    ]
    return Refusal(_REGIONS, "no other layout needs fewer transposes", names[0])


def _add(total: Outcome, part: Outcome) -> None:
    """Add what was done; what was refused counts as it stands in the end."""
    total.modified |= part.modified
    total.matched.update(part.matched)
    total.rewritten.update(part.rewritten)
    total.seconds.update(part.seconds)
