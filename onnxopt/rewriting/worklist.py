"""The driver: rules look at single nodes, and a change wakes only its neighbours.

The cost of a run grows with the number of nodes that some rule is anchored at, once, plus the
number of changes; there is no sweep over the whole graph after a change. The listener idea follows
xDSL's PatternRewriteWalker.
"""

from __future__ import annotations

import abc
import collections
import heapq
import operator
import time
from collections.abc import Iterable, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.errors import OnnxoptError
from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting.context import Context, Refuse
from onnxopt.rewriting.dead_code import (
    captured_values,
    drop_node,
    drop_unused_initializer,
    is_dead,
)
from onnxopt.rewriting.rewriter import Rewriter
from onnxopt.rewriting.rules import RewriteRule
from onnxopt.traversal import forget_nodes, nodes_by_operator

__all__ = ["RewritePass", "rewrite"]

#: A rule that undoes another would go on for ever; this many changes per node is no progress.
_MOST_CHANGES_PER_NODE = 20
#: A change wakes at most so many nodes downstream, however many read the value.
_MOST_WOKEN = 256


class RewritePass(Pass):
    """A pass that is a set of rewrite rules."""

    @abc.abstractmethod
    def rules(self) -> Sequence[RewriteRule[Any]]:
        """The rules, in the order in which they are tried at a node."""

    def run(self, model: ir.Model) -> Outcome:
        """Apply the rules until none matches."""
        return rewrite(model, self.rules(), self.max_rewrites)


def rewrite(
    model: ir.Model, rules: Sequence[RewriteRule[Any]], max_rewrites: int | None = None
) -> Outcome:
    """Apply rules to all graphs and functions of a model until none matches.

    Raises:
        OnnxoptError: When the rules go round in circles.
    """
    outcome = _Driver(model, rules, max_rewrites).run()
    if outcome.modified:
        forget_nodes(model)
    return outcome


class _Driver:
    def __init__(
        self, model: ir.Model, rules: Sequence[RewriteRule[Any]], max_rewrites: int | None
    ) -> None:
        self.context = Context(model)
        self.outcome = Outcome(model, False)
        self.by_anchor: dict[str, list[RewriteRule[Any]]] = collections.defaultdict(list)
        for rule in rules:
            for op_type in rule.anchors:
                self.by_anchor[op_type].append(rule)
        self.depth = max((rule.depth for rule in rules), default=0)
        self.max_rewrites = max_rewrites
        self.queue: collections.deque[ir.Node] = collections.deque()
        self.queued: set[ir.Node] = set()
        self.refused: dict[tuple[str, ir.Node], Refusal] = {}

    def run(self) -> Outcome:
        nodes = nodes_by_operator(self.context.model)
        anchors = [nodes[op_type] for op_type in self.by_anchor if op_type in nodes]
        for _, node in heapq.merge(*anchors, key=operator.itemgetter(0)):
            self._enqueue(node)
        limit = _MOST_CHANGES_PER_NODE * (sum(map(len, nodes.values())) + 10)
        changes = 0
        while self.queue and (self.max_rewrites is None or changes < self.max_rewrites):
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is not None and self._visit(node):
                changes += 1
                if changes > limit:
                    most = ", ".join(name for name, _ in self.outcome.rewritten.most_common(2))
                    raise OnnxoptError(f"rules do not come to an end: {most}")
        self.outcome.modified = changes > 0
        self.outcome.refusals = [
            refusal for (_, node), refusal in self.refused.items() if node.graph is not None
        ]
        return self.outcome

    def _enqueue(self, node: ir.Node) -> None:
        if node.op_type in self.by_anchor and is_standard(node) and node not in self.queued:
            self.queued.add(node)
            self.queue.append(node)

    def _visit(self, node: ir.Node) -> bool:
        for rule in self.by_anchor[node.op_type]:
            start = time.perf_counter()
            changed = self._apply(rule, node)
            self.outcome.seconds[rule.name] += time.perf_counter() - start
            if changed:
                return True
        return False

    def _apply(self, rule: RewriteRule[Any], node: ir.Node) -> bool:
        key = (rule.name, node)
        try:
            match = rule.match(node, self.context)
            if match is None:
                self.refused.pop(key, None)
                return False
            self.outcome.matched[rule.name] += 1
            reason = rule.check(match, self.context)
        except Refuse as refuse:
            reason = str(refuse)
        if reason is not None:
            self.refused[key] = Refusal(rule.name, reason, node.name or node.op_type)
            return False
        self.refused.pop(key, None)
        rewriter = Rewriter(self.context, node)
        rule.rewrite(match, rewriter)
        if not rewriter.changed and not rewriter.suspects:
            raise OnnxoptError(f"rule '{rule.name}' changed nothing; its match must not fire then")
        self.outcome.rewritten[rule.name] += 1
        self._settle(rewriter, node)
        return True

    def _settle(self, rewriter: Rewriter, anchor: ir.Node) -> None:
        """Remove what is dead now and wake what may match now."""
        woken = dict(rewriter.changed)
        for value in rewriter.unread:
            drop_unused_initializer(value)
        suspects = list(rewriter.suspects)
        if anchor not in rewriter.suspects:
            suspects.append(anchor)
        while suspects:
            node = suspects.pop()
            if node.graph is None:
                continue
            if not is_dead(node):
                woken[node] = None
                continue
            upstream = [value for value in node.inputs if value is not None]
            upstream.extend(captured_values(node))
            drop_node(node)
            for value in upstream:
                drop_unused_initializer(value)
                if (producer := value.producer()) is not None:
                    suspects.append(producer)
                for reader in value.consumers()[:2]:
                    woken[reader] = None
        self._wake(woken)

    def _wake(self, nodes: Iterable[ir.Node]) -> None:
        level = [node for node in nodes if node.graph is not None]
        seen = set(level)
        for node in level:
            self._enqueue(node)
            for value in node.inputs:  # a rule at the producer may look at its readers
                producer = value.producer() if value is not None else None
                if producer is not None:
                    self._enqueue(producer)
        for _ in range(self.depth):
            following: list[ir.Node] = []
            for node in level:
                for output in node.outputs:
                    for reader in output.consumers():
                        if reader not in seen and len(seen) < _MOST_WOKEN:
                            seen.add(reader)
                            following.append(reader)
                            self._enqueue(reader)
            level = following
