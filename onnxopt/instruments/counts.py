"""How long each pass took, and what it did to the number of nodes and the bytes of weights."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.pass_contract import Instrument, Pass, PassReport
from onnxopt.traversal import graphs_of, nodes_by_operator

__all__ = ["Counts", "Timing", "count_nodes", "count_ops"]


class Timing(Instrument):
    """Adds ``seconds`` to each pass's facts."""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Stop it."""
        report.facts["seconds"] = time.perf_counter() - self._start


class Counts(Instrument):
    """Adds ``nodes`` and ``weight_bytes`` before and after to the facts of passes that changed."""

    def __init__(self, model: ir.Model) -> None:
        self._sizes: dict[ir.TensorProtocol, int] = {}
        self._last = self._count(model)

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Count again where something changed."""
        if report.outcome.changed_model:
            now = self._count(model)
            report.facts["nodes"] = (self._last[0], now[0])
            report.facts["weight_bytes"] = (self._last[1], now[1])
            self._last = now

    def _count(self, model: ir.Model) -> tuple[int, int]:
        known = self._sizes  # most weights are the same from pass to pass
        self._sizes = {tensor: known.get(tensor) or tensor.nbytes for tensor in _weights(model)}
        return count_nodes(model), sum(map(self._sizes.__getitem__, _weights(model)))


def count_nodes(model: ir.Model) -> int:
    """Nodes of the main graph, of all bodies inside it, and of local functions."""
    return sum(map(len, nodes_by_operator(model).values()))


def count_ops(model: ir.Model) -> Counter[str]:
    """The same by operator; operators of other domains carry their domain."""
    return Counter(
        op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{op_type}"
        for op_type, nodes in nodes_by_operator(model).items()
        for _, node in nodes
    )


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    return (
        value.const_value
        for graph in graphs_of(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )
