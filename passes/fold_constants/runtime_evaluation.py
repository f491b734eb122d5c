"""Evaluate many nodes at once in ONNX Runtime, in a child process.

Nodes are gathered in one model and run in one session. When the runtime refuses it, or dies, halves
are tried, until the nodes that are to blame stand alone. Where it has no kernel for a node, ONNX's
reference implementation computes the node if it is small.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.runtime.worker import shared_worker

from .region_proto import TensorFacts, inputs_of, outputs_of, region_proto

__all__ = ["CRASHED", "RuntimeEvaluator"]

logger = logging.getLogger(__name__)

#: Marks a node, in its `meta`, that the runtime crashed or hung on, so that it is not tried again.
CRASHED = "onnxopt.crashed"

Known: TypeAlias = MutableMapping[ir.Value, ir.TensorProtocol]

#: One request to the runtime carries so much, both ways together.
_BATCH_BYTES = 1 << 28
#: Smaller inputs are part of the model, larger ones are fed.
_INITIALIZER_BYTES = 1 << 12
#: A request that takes longer is a hang.
_REQUEST_SECONDS = 20.0
#: After so much time lost in crashes and hangs, what is left is left alone.
_MOST_LOST_SECONDS = 60.0
#: The reference implementation is written for clarity; larger nodes would take for ever.
_REFERENCE_ELEMENTS = 1 << 16
#: Element types that can be sent to the runtime and back.
_RUNTIME_TYPES = frozenset(
    (
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
        *(ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ),
        *(ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ),
        ir.DataType.BOOL,
    )
)
#: How the runtime says that it has no kernel for a node.
_NO_KERNEL = ("Could not find an implementation", "Failed to find kernel")


class RuntimeEvaluator:
    """Evaluates nodes whose inputs are known.

    Args:
        known: Values that are known; results are added.
        facts: Element type and shape of values, where they are known.
        opset: Version of the standard domain.
        ir_version: IR version of the model that the nodes are of.

    Attributes:
        failed: Why a node could not be evaluated, as a phrase without names.
        by_reference: Nodes that ONNX's reference implementation computed.
    """

    def __init__(
        self, known: Known, facts: Mapping[ir.Value, TensorFacts], opset: int, ir_version: int
    ) -> None:
        self.failed: dict[ir.Node, str] = {}
        self.by_reference: set[ir.Node] = set()
        self._known = known
        self._facts = facts
        self._opset = opset
        self._ir_version = ir_version
        self._all: frozenset[ir.Node] = frozenset()
        self._wanted: frozenset[ir.Value] = frozenset()
        self._lost_seconds = 0.0
        self._without_kernel: set[tuple[Any, ...]] = set()

    def evaluate(self, nodes: Sequence[ir.Node], wanted: frozenset[ir.Value]) -> None:
        """Add the wanted outputs of nodes to what is known, as far as that is possible.

        Args:
            nodes: In topological order; each input is known or made by an earlier one.
            wanted: Outputs to keep.
        """
        self._all, self._wanted = frozenset(nodes), wanted
        self._evaluate(nodes)

    def _evaluate(self, nodes: Iterable[ir.Node]) -> None:
        possible = self._possible(nodes)
        parts = self._parts(possible)
        if len(parts) > 1:
            for part in parts:
                self._evaluate(part)
        elif possible and not self._fits_runtime(possible[0]):
            self._refer(possible[0])
        elif possible:
            self._run_or_halve(possible)

    def _possible(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Nodes that do not depend on anything that failed."""
        made: set[ir.Value] = set()
        possible = []
        for node in nodes:
            if all(value in self._known or value in made for value in inputs_of([node])):
                possible.append(node)
                made.update(node.outputs)
            else:
                self.failed.setdefault(node, "an input could not be computed")
        return possible

    def _parts(self, nodes: list[ir.Node]) -> list[list[ir.Node]]:
        """Runs of nodes for the runtime, and nodes that are not for it, each by itself."""
        parts: list[list[ir.Node]] = []
        open_run = False
        for node in nodes:
            fits = self._fits_runtime(node)
            if fits and open_run:
                parts[-1].append(node)
            else:
                parts.append([node])
            open_run = fits
        return parts

    def _run_or_halve(self, nodes: list[ir.Node]) -> None:
        outputs = self._kept(nodes)
        if len(nodes) > 1 and self._bytes(nodes, outputs) > _BATCH_BYTES:
            self._halve(nodes)
            return
        start = time.monotonic()
        try:
            self._run(nodes, outputs)
        except RuntimeRefusalError as error:
            logger.info("the runtime refused %d nodes: %s", len(nodes), error)
            if len(nodes) > 1:
                self._halve(nodes)
            elif any(words in str(error) for words in _NO_KERNEL):
                self._without_kernel.add(self._signature(nodes[0]))
                self._refer(nodes[0])
            else:
                self.failed[nodes[0]] = "the runtime refuses to compute it"
        except RuntimeCrashError as error:
            logger.info("the runtime crashed on %d nodes: %s", len(nodes), error)
            self._lost_seconds += time.monotonic() - start
            if len(nodes) == 1 or self._lost_seconds > _MOST_LOST_SECONDS:
                for node in nodes:
                    self.failed[node] = "the runtime crashes or hangs on it"
                    node.meta[CRASHED] = True
            else:
                self._halve(nodes)

    def _halve(self, nodes: list[ir.Node]) -> None:
        middle = len(nodes) // 2
        self._evaluate(nodes[:middle])
        self._evaluate(nodes[middle:])

    def _kept(self, nodes: Sequence[ir.Node]) -> list[ir.Value]:
        """Outputs that are wanted, or that nodes of another session read."""
        here = frozenset(nodes)
        elsewhere = self._all - here
        return [
            output
            for output in outputs_of(nodes)
            if output in self._wanted or not elsewhere.isdisjoint(output.consumers())
        ]

    def _run(self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
        if not outputs:
            return
        region = region_proto(
            nodes, self._known, self._opset, self._ir_version, _INITIALIZER_BYTES, outputs
        )
        feeds = {name: self._known[value].numpy() for name, value in region.fed.items()}
        message = region.proto.SerializeToString()
        arrays = shared_worker().evaluate(message, feeds, _REQUEST_SECONDS)
        self._keep(nodes, outputs, arrays)

    def _refer(self, node: ir.Node) -> None:
        """Compute one small node with ONNX's reference implementation."""
        read, made = inputs_of([node]), outputs_of([node])
        elements = sum(self._known[value].size for value in read)
        for output in made:
            facts = self._facts.get(output)
            shape = None if facts is None else facts.shape
            elements += _REFERENCE_ELEMENTS if shape is None else math.prod(shape)
        if elements > _REFERENCE_ELEMENTS or ir.DataType.STRING in map(self._dtype, (*read, *made)):
            self.failed[node] = "the runtime has no kernel for it"
            return
        from onnx.reference import ReferenceEvaluator  # slow to import and seldom needed

        region = region_proto([node], self._known, self._opset, self._ir_version, 0, made)
        feeds = {name: self._known[value].numpy() for name, value in region.fed.items()}
        try:
            with np.errstate(all="ignore"):
                arrays = ReferenceEvaluator(region.proto).run(None, feeds)
        except Exception as error:  # its operators raise whatever they like
            logger.info("the reference implementation failed on %s", node.op_type, exc_info=error)
            self.failed[node] = "neither the runtime nor the reference implementation computes it"
            return
        self._keep([node], made, arrays)
        self.by_reference.add(node)

    def _keep(
        self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], arrays: Sequence[Any]
    ) -> None:
        """Add results to what is known, unless they are not what inference says they are."""
        wrong: set[ir.Node | None] = set()
        for output, array in zip(outputs, arrays, strict=True):
            tensor = _tensor(array)
            facts = self._facts.get(output)
            if tensor is None or (facts is not None and not facts.fit(tensor)):
                wrong.add(output.producer())
            else:
                self._known[output] = tensor
        for node in nodes:
            if node in wrong:
                self.failed[node] = "the result is not of the inferred type"

    # What the runtime can take

    def _signature(self, node: ir.Node) -> tuple[Any, ...]:
        return (node.op_type, *map(self._dtype, inputs_of([node])))

    def _dtype(self, value: ir.Value) -> ir.DataType | None:
        if value in self._known:
            return self._known[value].dtype
        facts = self._facts.get(value)
        return None if facts is None else facts.dtype

    def _fits_runtime(self, node: ir.Node) -> bool:
        types = [self._dtype(value) for value in (*inputs_of([node]), *outputs_of([node]))]
        return (
            all(dtype is None or dtype in _RUNTIME_TYPES for dtype in types)
            and self._signature(node) not in self._without_kernel
        )

    def _bytes(self, nodes: Sequence[ir.Node], outputs: Iterable[ir.Value]) -> int:
        """What a request carries, as far as that is known."""
        total = sum(
            self._known[value].nbytes for value in set(inputs_of(nodes)) if value in self._known
        )
        facts = [self._facts.get(output) for output in outputs]
        return total + sum(each.nbytes or 0 for each in facts if each is not None)


def _tensor(array: Any) -> ir.TensorProtocol | None:
    """The tensor of a result; None for sequences, strings and element types ONNX does not have."""
    if not isinstance(array, np.ndarray | np.generic):
        return None
    try:
        tensor = ir.Tensor(np.asarray(array))
    except TypeError:
        return None
    return None if tensor.dtype == ir.DataType.STRING else tensor
