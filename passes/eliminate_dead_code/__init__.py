"""Remove what nobody reads.

Nodes, initializers and functions; optional outputs (the mask of Dropout, the indices of MaxPool,
sequences of LSTM), which the runtime then need not compute; outputs of If, Loop and Scan with what
makes them in the bodies, and states that a loop only carries along for their own sake. In all
graphs and functions, from the end to the beginning, so that one sweep is enough.

Exact. Left alone: graph inputs and outputs, used or not, and the opset imports; nodes of unknown
domains, since they may do something else than compute, and the control flow and calls around them;
overridable initializers, which are graph inputs.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import Context, drop_node, drop_unused_initializer
from onnxopt.traversal import bodies

from .unread_outputs import (
    drop_outputs,
    is_unread,
    outputs_to_keep,
    releasable,
    release,
)

__all__ = ["EliminateDeadCode"]


class EliminateDeadCode(Pass):
    """Remove what nobody reads."""

    name = "eliminate-dead-code"

    def run(self, model: ir.Model) -> Outcome:
        """Sweep all graphs and functions."""
        outcome = Outcome(model, False)
        sweep = _Sweep(model, outcome, self.max_rewrites)
        sweep.functions()
        for root in (model.graph, *(function.graph for function in model.functions.values())):
            sweep.graph(root)
        outcome.matched.update(outcome.rewritten)
        outcome.modified = bool(outcome.rewritten)
        return outcome


class _Sweep:
    def __init__(self, model: ir.Model, outcome: Outcome, most: int | None) -> None:
        self.model = model
        self.context = Context(model)
        self.outcome = outcome
        self.most = most
        self._function_effects: dict[ir.OperatorIdentifier, bool] = {}

    def functions(self) -> None:
        """Remove functions that nothing reachable from the main graph calls."""
        functions = self.model.functions
        reached: set[ir.OperatorIdentifier] = set()
        pending = [self.model.graph]
        while pending:
            for node in pending.pop().all_nodes():
                called = node.op_identifier()
                if called in functions and called not in reached:
                    reached.add(called)
                    pending.append(functions[called].graph)
        for identifier in [each for each in functions if each not in reached]:
            if self._may("unused-function"):
                del functions[identifier]

    def graph(self, graph: ir.Graph) -> None:
        """Remove what is dead in a graph and in the bodies inside, the last node first."""
        for node in list(reversed(graph)):
            unread = all(map(is_unread, node.outputs))
            if unread and not self.has_effects(node):
                if self._may("dead-node"):
                    drop_node(node)
                continue
            if unread:
                reason = "an operator of an unknown domain may do more than compute"
                label = node.name or node.op_type
                self.outcome.refusals.append(Refusal("dead-node", reason, label))
            if bodies(node):
                self._control_flow(node)
            elif (optional := releasable(node)) and self._may("unread-output"):
                release(node, optional)
        for value in list(graph.initializers.values()):
            unused = is_unread(value) and not value.is_graph_input()
            if unused and self._may("unused-initializer"):
                drop_unused_initializer(value)

    def _control_flow(self, node: ir.Node) -> None:
        kept = outputs_to_keep(node, self.context.opset(node), self.has_effects)
        most = self.most
        if len(kept) < len(node.outputs) and self._may("unread-output"):
            node = drop_outputs(node, kept)
            self.most = None  # what made them may read what is no longer there: it goes as well
        for body in bodies(node):
            self.graph(body)
        self.most = most

    def has_effects(self, node: ir.Node) -> bool:
        """Whether a node may do more than compute its outputs."""
        called = node.op_identifier()
        if called in self.model.functions:
            if called not in self._function_effects:
                self._function_effects[called] = True  # what calls itself is not understood
                body = self.model.functions[called]
                self._function_effects[called] = any(map(self.has_effects, body))
            return self._function_effects[called]
        if not is_standard(node):
            return True
        return any(self.has_effects(inner) for body in bodies(node) for inner in body)

    def _may(self, rule: str) -> bool:
        """Count a change, unless there have been as many as there may be."""
        if self.most is not None and self.outcome.rewritten.total() >= self.most:
            return False
        self.outcome.rewritten[rule] += 1
        return True
