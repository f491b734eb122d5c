"""Fold affine steps, ``scale * x + shift`` with constants, into the operators around them.

Steps are Mul, Div, Add, Sub and Neg with a constant, and BatchNormalization outside training.

- ``fold-into-producer``: a step after Conv, ConvTranspose, Gemm, MatMul, LayerNormalization or
  InstanceNormalization goes into the weights and the bias: s (W x + b) + t = (s W) x + (s b + t).
- ``merge-steps``: a chain of steps becomes one Mul and one Add, or one BatchNormalization, whenever
  that is fewer nodes: s2 (s1 x + t1) + t2 = (s2 s1) x + (s2 t1 + t2).
- ``fold-into-readers``: a step before Conv, ConvTranspose, Gemm, MatMul or BatchNormalization goes
  into theirs: W (s x + t) + b = (W s) x + (b + W t), at every reader, or nowhere. On the way there
  it passes whatever commutes with it: pools, rectifiers, products, and an Add of a constant, which
  then adds c/s. A convolution that pads with zeros takes in the scale; the shift stays before it.
- ``factor-gate``: x + x g becomes x (g + 1) when g is one number per channel (as in squeeze and
  excitation), so that one pass over the large tensor goes.

Exact up to floating-point reassociation. The new constants are computed in float64 and rounded
once. Left alone: weights that others read too (they would be there twice), weights or statistics
that are not constant, quantized weights, values that something else reads or that are outputs,
constants that would make the tensor larger, results that do not fit the element type, and parts of
the GELU and layer-normalization idioms, which runtimes fuse better. Fuse activations before this
pass where an opset has an operator for them: it merges their constants with their neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule

from ..shared.affine import (
    STEP_OPERATORS,
    Affine,
    Array,
    Step,
    batch_norm_statistics,
    chain_ending_at,
    compose,
    read_step,
    round_to,
)
from .gates import FactorGate
from .linear import AFTER, BEFORE, Edit
from .paths import carry, is_path, runtime_idiom

__all__ = ["FuseAffine"]

#: So many numbers more in constants are worth a node less.
_SMALL_GROWTH = 1024
#: Paths a step may be pulled up through: one input and nothing but the one output.
_MOST_READERS = 64
_UPWARD = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})


@dataclasses.dataclass
class _IntoProducer:
    chain: list[Step]
    producer: ir.Node
    path: list[ir.Node]
    edit: Edit | None = None
    shift: Array | None = None


class _FoldIntoProducer(RewriteRule[_IntoProducer]):
    """Fold the steps that end here into the linear operator before them."""

    name = "fold-into-producer"
    anchors: ClassVar[tuple[str, ...]] = STEP_OPERATORS
    depth: ClassVar[int] = 4

    def match(self, node: ir.Node, context: Context) -> _IntoProducer | None:
        step = read_step(node, context)
        if step is None:
            return None
        chain = chain_ending_at(step, context)
        path: list[ir.Node] = []
        producer = chain[0].source.producer()
        while producer is not None and producer.op_type in _UPWARD and is_standard(producer):
            path.append(producer)
            source = producer.inputs[0]
            producer = source.producer() if source is not None else None
        if producer is None or producer.op_type not in AFTER or not is_standard(producer):
            return None
        if producer.op_type == "MatMul" and not any(each.affine.scales for each in chain):
            return None  # a shift alone is where it belongs
        return _IntoProducer(chain, producer, path)

    def check(self, match: _IntoProducer, context: Context) -> str | None:
        first = match.chain[0]
        passed = [match.producer, *match.path]
        if not all(values.has_one_use(node.outputs[0]) for node in passed):
            return "something else reads the value too"
        if any(node.graph is not first.node.graph for node in passed):
            return "the operator stands in another graph"
        _refuse_idioms(match.chain, context)
        affine = compose(match.chain)
        if match.producer.op_type == "MatMul":  # it has no bias: the shift stays behind it
            if affine.shift.any() or affine.shift.size > 1:
                match.shift = round_to(affine.shift, first.dtype)
            affine = Affine(affine.scale, np.array(0.0))
        for node in match.path:
            affine = carry(node, 0, affine)
        match.edit = AFTER[match.producer.op_type](match.producer, affine)
        return None

    def rewrite(self, match: _IntoProducer, rewriter: Rewriter) -> None:
        assert match.edit is not None
        last = match.chain[-1]
        match.edit.apply(rewriter)
        rewriter.insert_before(last.node)
        result = match.chain[0].source
        if match.shift is not None:
            constant = rewriter.initializer(match.shift, f"{last.output.name}_shift")
            result = rewriter.op("Add", [result, constant], like=last.output)
        rewriter.replace(last.output, result)


@dataclasses.dataclass
class _Chain:
    steps: list[Step]
    affine: Affine
    norm: ir.Node | None
    constants: list[tuple[str, Array]] = dataclasses.field(default_factory=list)


class _MergeSteps(RewriteRule[_Chain]):
    """Make one Mul and one Add, or one BatchNormalization, of a chain of steps."""

    name = "merge-steps"
    anchors: ClassVar[tuple[str, ...]] = STEP_OPERATORS
    depth: ClassVar[int] = 4

    def match(self, node: ir.Node, context: Context) -> _Chain | None:
        step = read_step(node, context)
        if step is None:
            return None
        steps = chain_ending_at(step, context)
        norms = [each.node for each in steps if each.node.op_type == "BatchNormalization"]
        affine = compose(steps)
        needed = 1 if norms else max(1, affine.scales + affine.shifts)
        if needed >= len(steps):
            return None
        return _Chain(steps, affine, norms[-1] if norms else None)

    def check(self, match: _Chain, context: Context) -> str | None:
        _refuse_idioms(match.steps, context)
        dtype = match.steps[0].dtype
        if match.norm is not None:
            match.constants = self._norm_constants(match, match.norm)
            return None
        scale, shift = match.affine.scale, match.affine.shift
        whole = np.broadcast_shapes(scale.shape, shift.shape)
        if not match.affine.shifts:  # what is left must still broadcast as both did
            match.constants = [("Mul", np.broadcast_to(scale, whole))]
        elif not match.affine.scales:
            match.constants = [("Add", np.broadcast_to(shift, whole))]
        else:
            match.constants = [("Mul", scale), ("Add", shift)]
        match.constants = [
            (name, round_to(array, dtype, factors=name == "Mul")) for name, array in match.constants
        ]
        before = sum(_constant_size(step.node) for step in match.steps)
        if sum(array.size for _, array in match.constants) > before + _SMALL_GROWTH:
            return "the merged constants would be larger"
        return None

    def _norm_constants(self, match: _Chain, norm: ir.Node) -> list[tuple[str, Array]]:
        """Scale and bias that make the normalization, with its statistics, the whole chain."""
        gain, _, mean, deviation = batch_norm_statistics(norm)
        rank = values.rank(match.steps[0].source)
        if rank is None:
            raise Refuse("the rank is unknown")
        scale, shift = match.affine.along(1, rank, gain.size)
        dtype = next(step.dtype for step in match.steps if step.node is norm)
        pair = {"scale": scale * deviation, "bias": shift + scale * mean}
        return [
            (name, round_to(array, dtype, factors=name == "scale")) for name, array in pair.items()
        ]

    def rewrite(self, match: _Chain, rewriter: Rewriter) -> None:
        last = match.steps[-1].output
        value = match.steps[0].source
        if match.norm is not None:
            (_, scale), (_, bias) = match.constants
            inputs = [
                value,
                rewriter.initializer(scale, f"{last.name}_scale"),
                rewriter.initializer(bias, f"{last.name}_bias"),
                *match.norm.inputs[3:5],
            ]
            attributes = dict(match.norm.attributes)
            value = rewriter.op("BatchNormalization", inputs, attributes, like=last)
        else:
            for op_type, array in match.constants:
                constant = rewriter.initializer(array, f"{last.name}_{op_type.lower()}")
                value = rewriter.op(op_type, [value, constant], like=last)
        rewriter.replace(last, value)


@dataclasses.dataclass
class _IntoReaders:
    step: Step
    edits: list[Edit] = dataclasses.field(default_factory=list)


class _FoldIntoReaders(RewriteRule[_IntoReaders]):
    """Fold a step into all that read it; it is the anchor itself, since many may read it."""

    name = "fold-into-readers"
    anchors: ClassVar[tuple[str, ...]] = STEP_OPERATORS
    depth: ClassVar[int] = 1

    def match(self, node: ir.Node, context: Context) -> _IntoReaders | None:
        step = read_step(node, context)
        if step is None:
            return None
        readers = step.output.consumers()
        takes = [reader.op_type in BEFORE and is_standard(reader) for reader in readers]
        passes = [is_path(reader) or _adds_constant(reader, context) for reader in readers]
        if not any(takes) and not all(passes):
            return None
        return _IntoReaders(step) if readers else None

    def check(self, match: _IntoReaders, context: Context) -> str | None:
        step = match.step
        if not step.keeps_shape():
            return "the constants are not known to fit the shape"
        _refuse_idioms([step], context)
        search = _ReaderSearch(step.node, context)
        search.visit(step.output, step.affine)
        match.edits = search.edits
        return None

    def rewrite(self, match: _IntoReaders, rewriter: Rewriter) -> None:
        for edit in match.edits:
            edit.apply(rewriter)
        rewriter.replace(match.step.output, match.step.source)


class _ReaderSearch:
    """Collects what every reader of a value must change when a step before it goes."""

    def __init__(self, origin: ir.Node, context: Context) -> None:
        self.origin = origin
        self.context = context
        self.edits: list[Edit] = []
        self._seen: set[ir.Node] = set()

    def visit(self, value: ir.Value, affine: Affine) -> None:
        """Go through all readers of a value that will lack the step.

        Raises:
            Refuse: When one cannot take the step in.
        """
        if value.is_graph_output():
            raise Refuse("the value is an output")
        for node, index in value.uses():
            if node.graph is not self.origin.graph:
                raise Refuse("a body of control flow reads the value")
            if node in self._seen:
                raise Refuse("two paths meet")
            if len(self._seen) >= _MOST_READERS:
                raise Refuse("too many readers")
            self._seen.add(node)
            self._read(node, index, affine)

    def _read(self, node: ir.Node, index: int, affine: Affine) -> None:
        if not is_standard(node):
            raise Refuse("a reader is of another domain")
        if node.op_type in BEFORE and (index == 0 or node.op_type == "MatMul"):
            self.edits.append(BEFORE[node.op_type](node, affine))
        elif _adds_constant(node, self.context):
            self._past_shift(node, index, affine)
        elif is_path(node):
            passed = carry(node, index, affine)
            for output in node.outputs:
                if output.uses() or output.is_graph_output():
                    self.visit(output, passed)
        else:
            raise Refuse(f"{node.op_type} reads the value")

    def _past_shift(self, node: ir.Node, index: int, affine: Affine) -> None:
        """s x + t + c = s (x + c/s) + t."""
        if not affine.scale.all():
            raise Refuse("a scale is zero")
        step = read_step(node, self.context)
        assert step is not None
        if node.op_type == "Sub" and index == 1:
            raise Refuse("it is subtracted from a constant")
        moved = step.affine.shift / affine.scale
        if moved.size > step.affine.shift.size + _SMALL_GROWTH:
            raise Refuse("the merged constants would be larger")
        number = round_to(moved if node.op_type == "Add" else -moved, step.dtype, factors=True)
        self.edits.append(Edit(node, {1 - index: number}))
        self.visit(step.output, affine)


def _adds_constant(node: ir.Node, context: Context) -> bool:
    if node.op_type not in ("Add", "Sub") or not is_standard(node):
        return False
    return read_step(node, context) is not None


def _refuse_idioms(steps: Sequence[Step], context: Context) -> None:
    for step in steps:
        reason = runtime_idiom(step, context)
        if reason is not None:
            raise Refuse(reason)


def _constant_size(node: ir.Node) -> int:
    sizes = [array.size for array in map(values.constant_array, node.inputs) if array is not None]
    return max(sizes, default=0)


class FuseAffine(RewritePass):
    """Fold constant scales and shifts into the operators around them."""

    name = "fuse-affine"

    def rules(self) -> list[RewriteRule[Any]]:
        """The rules; the producer comes first, since folding into it moves nothing else."""
        return [_FoldIntoProducer(), _MergeSteps(), _FoldIntoReaders(), FactorGate()]
