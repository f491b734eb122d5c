"""Find out what is constant in a model: the values of what is small, the sizes of what is large.

Small values are computed at once, since shapes downstream depend on them. Large ones are computed
only once it is known that writing them is worth it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.op_traits import Trait, has_trait, is_deterministic, is_standard
from onnxopt.traversal import all_nodes

from .direct_evaluation import evaluate_directly
from .region_proto import TensorFacts, inputs_of, outputs_of, region_proto
from .runtime_evaluation import CRASHED, RuntimeEvaluator

__all__ = ["ConstantValues"]

logger = logging.getLogger(__name__)

#: Values up to this size are computed to learn from them.
_SMALL_BYTES = 1 << 18
#: Nothing larger is computed, not even on the way to something small.
_LARGEST_BYTES = 1 << 30
#: Known values up to this size are shown to shape inference.
_SHOWN_BYTES = 1 << 10
#: Most sessions in a row that learn small values. Each opens the way for more shapes.
_MOST_WAVES = 16
_UNKNOWN_SIZE = "the size of the result is not known before it is computed"
#: Operators whose output shape depends on numbers, but is no larger than their inputs are.
_BOUNDED = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression"))
#: Operators whose results are no tensors of numbers, or not the same in every runtime.
_NOT_NUMBERS = frozenset(
    (
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
        *("SequenceLength", "ConcatFromSequence", "SplitToSequence"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
        *("StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"),
        "ImageDecoder",
    )
)


class ConstantValues:
    """The constant part of a model, except in local functions.

    Args:
        model: The model.

    Attributes:
        nodes: Nodes that depend on constants only and can be folded, in topological order.
        known: Values that are known: constants of the model, and what was computed of them.
        refused: Why other nodes that read nothing but constants are left alone.
        ways: How a node was computed: ``fold-directly``, ``fold-in-runtime``,
            ``fold-by-reference``.
    """

    def __init__(self, model: ir.Model) -> None:
        self.known: dict[ir.Value, ir.TensorProtocol] = {}
        self.refused: dict[ir.Node, str] = {}
        self.ways: dict[ir.Node, str] = {}
        self._facts: dict[ir.Value, TensorFacts] = {}
        self._opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        self._runtime = RuntimeEvaluator(self.known, self._facts, self._opset, model.ir_version)
        self.nodes = self._candidates(model)
        self._learn()

    @property
    def is_waiting(self) -> bool:
        """Whether a node was left alone only because the size of its result is not known yet."""
        return _UNKNOWN_SIZE in self.refused.values()

    def nbytes(self, value: ir.Value) -> int | None:
        """Size of a constant value in bytes, or None when it is not known."""
        if value in self.known:
            return self.known[value].nbytes
        facts = self._facts.get(value)
        return None if facts is None else facts.nbytes

    def compute(self, values: Iterable[ir.Value]) -> bool:
        """Compute values that only their sizes are known of.

        Returns:
            Whether all of them are known now. Nodes that could not be computed, and all that depend
            on them, are then no longer in `nodes`.
        """
        wanted = frozenset(value for value in values if value not in self.known)
        if not wanted:
            return True
        needed: set[ir.Node] = set()
        stack = list(wanted)
        while stack:
            node = stack.pop().producer()
            if node is not None and node not in needed:
                needed.add(node)
                stack.extend(value for value in inputs_of([node]) if value not in self.known)
        candidates = len(self.nodes)
        todo = [node for node in self.nodes if node in needed]
        todo = [node for node in todo if not self._directly(node, _LARGEST_BYTES)]
        self._in_runtime(todo, wanted)
        complete = all(value in self.known for value in wanted)
        assert complete or len(self.nodes) < candidates
        return complete

    # What can be folded at all

    def _candidates(self, model: ir.Model) -> list[ir.Node]:
        nodes: list[ir.Node] = []
        computed: set[ir.Value] = set()
        for node in all_nodes(model.graph):
            read = inputs_of([node])
            if not read or node.op_type == "Constant":
                continue
            constants = {value: self._constant(value) for value in read if value not in computed}
            if None in constants.values():
                continue
            reason = _obstacle(node, constants)
            if reason is not None:
                self.refused[node] = reason
                continue
            self.known.update((key, each) for key, each in constants.items() if each is not None)
            computed.update(node.outputs)
            nodes.append(node)
        return nodes

    def _constant(self, value: ir.Value) -> ir.TensorProtocol | None:
        return self.known[value] if value in self.known else constant(value)

    # Learning

    def _learn(self) -> None:
        """Compute what is small and find the sizes of what is large."""
        todo = list(self.nodes)
        for _ in range(_MOST_WAVES):
            todo = [node for node in todo if not self._directly(node, _SMALL_BYTES)]
            if not todo:
                return
            self._infer(todo)
            ready = self._small(todo)
            if not ready:
                break
            self._in_runtime(ready, frozenset(outputs_of(ready)))
            done = {*ready, *self.refused}
            todo = [node for node in todo if node not in done]
        self._drop({node: reason for node in todo if (reason := self._uncomputable(node))})

    def _uncomputable(self, node: ir.Node) -> str | None:
        sizes = [self.nbytes(value) for value in (*inputs_of([node]), *outputs_of([node]))]
        if None in sizes:
            return _UNKNOWN_SIZE
        if any(size is not None and size > _LARGEST_BYTES for size in sizes):
            return "it is too large to be computed"
        return None

    def _directly(self, node: ir.Node, limit_bytes: int) -> bool:
        tensors = [None if value is None else self.known.get(value) for value in node.inputs]
        if any(
            tensor is None and value is not None
            for tensor, value in zip(tensors, node.inputs, strict=True)
        ):
            return False
        results = evaluate_directly(node, self._opset, tensors, limit_bytes)
        if results is None or len(results) != len(node.outputs):
            return False
        for output, array in zip(node.outputs, results, strict=True):
            self.known[output] = ir.Tensor(array)
        self.ways[node] = "fold-directly"
        return True

    def _infer(self, nodes: Sequence[ir.Node]) -> None:
        """Infer element types and shapes of what nodes make."""
        region = region_proto(nodes, self.known, self._opset, 10, _SHOWN_BYTES)
        try:
            proto = onnx.shape_inference.infer_shapes(region.proto, data_prop=True)
        except Exception as error:  # the library has no error type of its own for all its checks
            logger.info("shape inference failed on %d nodes", len(nodes), exc_info=error)
            if len(nodes) > 1:
                for node in nodes:
                    if all(value in self.known for value in inputs_of([node])):
                        self._infer([node])
            return
        found = {info.name: info.type for info in proto.graph.value_info}
        for value in outputs_of(nodes):
            type_proto = found.get(region.names[value])
            if type_proto is not None and type_proto.tensor_type.elem_type:
                self._facts[value] = _facts(type_proto.tensor_type)

    def _small(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """Nodes that can be computed now, and that make and read little."""
        ready: list[ir.Node] = []
        made: set[ir.Value] = set()
        for node in nodes:
            read, outputs = inputs_of([node]), outputs_of([node])
            known = all(value in self.known for value in read)
            sizes = [self.nbytes(value) for value in (*read, *outputs)]
            if known and node.op_type in _BOUNDED:
                sizes = sizes[: len(read)]
            if all(value in self.known or value in made for value in read) and all(
                size is not None and size <= _SMALL_BYTES for size in sizes
            ):
                ready.append(node)
                made.update(outputs)
        return ready

    # Computing

    def _in_runtime(self, nodes: Sequence[ir.Node], wanted: frozenset[ir.Value]) -> None:
        self._runtime.evaluate(nodes, wanted)
        for node in nodes:
            referred = node in self._runtime.by_reference
            self.ways[node] = "fold-by-reference" if referred else "fold-in-runtime"
        self._drop(
            {node: self._runtime.failed[node] for node in nodes if node in self._runtime.failed}
        )

    def _drop(self, reasons: Mapping[ir.Node, str]) -> None:
        """Take nodes and all that depends on them out of what can be folded."""
        if not reasons:
            return
        lost = {value for node in reasons for value in node.outputs}
        kept: list[ir.Node] = []
        for node in self.nodes:
            if node in reasons:
                self.refused[node] = reasons[node]
            elif lost.isdisjoint(inputs_of([node])):
                kept.append(node)
            else:
                lost.update(node.outputs)
        self.nodes = kept
        for value in lost:
            self.known.pop(value, None)


def _obstacle(node: ir.Node, constants: Mapping[ir.Value, ir.TensorProtocol | None]) -> str | None:
    """Why a node that reads only constants must not be folded, or None."""
    if not is_standard(node):
        return "the operator is not of the standard domain"
    if has_trait(node, Trait.QUANTIZATION):
        return "quantization is information and is not folded"
    if has_trait(node, Trait.CONTROL_FLOW):
        return "control flow is not folded"
    if node.op_type in _NOT_NUMBERS:
        return "it works on strings, sequences or optional values"
    if node.meta.get(CRASHED) is not None:
        return "the runtime crashes or hangs on it"
    if not is_deterministic(node):
        return "the result may differ from run to run"
    if any(tensor.dtype == ir.DataType.STRING for tensor in constants.values() if tensor):
        return "it works on strings, sequences or optional values"
    return None


def _facts(tensor_type: onnx.TypeProto.Tensor) -> TensorFacts:
    dims = tensor_type.shape.dim
    known = tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    shape = tuple(dim.dim_value for dim in dims) if known else None
    return TensorFacts(ir.DataType(tensor_type.elem_type), shape)
