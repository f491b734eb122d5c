"""Make the weights dense again that `compact-weights` stored in fewer bytes.

The inverse of `compact-weights`: the decoders are found by what they look like, run in ONNX
Runtime, and replaced by what they make. Every tensor comes back byte for byte under its name.

Exact. The file grows. Left alone: whatever else is computed from constants (`fold-constants` sees
to that), decoders that the runtime cannot run.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.rewriting import drop_node, drop_unused_initializer, is_dead
from onnxopt.traversal import all_graphs

from .compact_weights.evaluation import decode
from .compact_weights.structures import META_DECODED, FoundDecoder, find_decoders

__all__ = ["DecodeWeights"]


class DecodeWeights(Pass):
    """Make the weights dense again that `compact-weights` stored in fewer bytes.

    The inverse of `compact-weights`: every tensor comes back byte for byte under its name. Decoders
    are found by what they look like, so they may have been through other tools. The file grows.
    """

    name = "decode-weights"
    kind = Kind.STORAGE
    _rule = "decoder"

    def run(self, model: ir.Model) -> Outcome:
        """Decode in the main graph and in all bodies of control flow in it."""
        outcome = Outcome(model, False)
        for graph in list(all_graphs(model.graph)):
            for found in find_decoders(graph):
                if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                    break
                self._decode(model, graph, found, outcome)
        outcome.modified = bool(outcome.rewritten)
        if outcome.modified:
            model.meta[META_DECODED] = True
        return outcome

    def _decode(
        self, model: ir.Model, graph: ir.Graph, found: FoundDecoder, outcome: Outcome
    ) -> None:
        outcome.matched[self._rule] += 1
        reason = ""
        if found.output.is_graph_output():
            reason = "a graph output must be made by a node"
        else:
            opset = model.opset_imports.get("", 0)
            try:
                (array,) = decode(found.nodes, found.parts, [found.output], opset, model.ir_version)
            except (RuntimeRefusalError, RuntimeCrashError):
                reason = "the runtime cannot run the decoder"
        if reason:
            outcome.refusals.append(Refusal(self._rule, reason, found.output.name or ""))
            return
        name = found.output.name
        dense = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        dense.type, dense.shape = (
            ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            ir.Shape(array.shape),
        )
        found.output.replace_all_uses_with(dense)
        _drop(found.nodes, found.parts)
        graph.register_initializer(dense)
        outcome.rewritten[self._rule] += 1


def _drop(nodes: Iterable[ir.Node], parts: Iterable[ir.Value]) -> None:
    """Remove the nodes of a decoder, and what only they read."""
    for node in reversed(list(nodes)):
        if is_dead(node):
            drop_node(node)
    for part in parts:
        drop_unused_initializer(part)
        producer = part.producer()
        if producer is not None and is_dead(producer):
            drop_node(producer)
