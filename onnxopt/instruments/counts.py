"""How long each pass took, and what it did to the number of nodes and the bytes of weights."""

from __future__ import annotations

import time
from collections import Counter

import onnx_ir as ir

from onnxopt.pass_contract import Instrument, Pass, PassReport
from onnxopt.traversal import all_graphs, all_nodes, nodes_by_operator, root_graphs

__all__ = ["Counts", "Timing", "count_nodes", "count_ops", "weight_bytes"]


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
        self._last = (count_nodes(model), weight_bytes(model))

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Count again where something changed."""
        if report.outcome.changed_model:
            now = (count_nodes(model), weight_bytes(model))
            report.facts["nodes"] = (self._last[0], now[0])
            report.facts["weight_bytes"] = (self._last[1], now[1])
            self._last = now


def count_nodes(model: ir.Model) -> int:
    """Nodes of the main graph, of all bodies inside it, and of local functions."""
    return sum(map(len, nodes_by_operator(model).values()))


def count_ops(model: ir.Model) -> Counter[str]:
    """The same by operator; operators of other domains carry their domain."""
    counts: Counter[str] = Counter()
    for graph in root_graphs(model):
        for node in all_nodes(graph):
            prefix = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
            counts[prefix + node.op_type] += 1
    return counts


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for root in root_graphs(model)
        for graph in all_graphs(root)
        for value in graph.initializers.values()
        if value.const_value is not None
    )
