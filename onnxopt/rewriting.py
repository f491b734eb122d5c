"""A worklist rewriter: rules look at single nodes, and a change wakes only its neighbours.

The cost of a run grows with the number of nodes that some rule is anchored at, once, plus the
number of changes; there is no sweep over the whole graph after a change. A rule keeps match and
legality apart: `RewriteRule.match` says whether the pattern is there, `RewriteRule.check` whether
the rewrite is allowed, and if not why; refusals are kept for ``--explain``.

The listener idea follows xDSL's PatternRewriteWalker.
"""

from __future__ import annotations

import abc
import collections
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OnnxoptError
from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Outcome, Pass, Refusal

__all__ = ["Context", "Refuse", "RewritePass", "RewriteRule", "Rewriter", "rewrite"]

#: What a rule's match hands to its rewrite.
M = TypeVar("M")

#: A rule that undoes another would go on for ever; this many changes per node is no progress.
_MOST_CHANGES_PER_NODE = 20
#: A change wakes at most so many nodes downstream, however many read the value.
_MOST_WOKEN = 256


class Refuse(Exception):  # noqa: N818 - it is an answer, not an error
    """Raised inside a rule: the pattern is there but must be left alone, for this reason."""


class Context:
    """What a rule may ask of the model around a node."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._imports: dict[int, Mapping[str, int]] = {}
        self._function_graphs: set[int] = set()
        self._names: set[str] | None = None
        self._last_number: dict[str, int] = {}
        for root, imports, in_function in _roots(model):
            for graph in (root, *root.subgraphs()):
                self._imports[id(graph)] = imports
                if in_function:
                    self._function_graphs.add(id(graph))

    def opset(self, node: ir.Node) -> int:
        """Version of the node's domain where the node stands; 0 when it is not imported."""
        imports = self._imports.get(id(node.graph), self.model.opset_imports)
        domain = "" if is_standard(node) else node.domain
        return imports.get(domain, imports.get("ai.onnx", 0) if domain == "" else 0)

    def in_function(self, node: ir.Node) -> bool:
        """Whether the node stands in the body of a local function."""
        return id(node.graph) in self._function_graphs

    def unique_name(self, hint: str) -> str:
        """A name that no value and no node of the model has yet."""
        if self._names is None:
            self._names = set(_names(self.model))
        name, number = hint, self._last_number.get(hint, 0)
        while name in self._names:
            number += 1
            name = f"{hint}_{number}"
        self._last_number[hint] = number
        self._names.add(name)
        return name


class RewriteRule(abc.ABC, Generic[M]):
    """One rewrite.

    Attributes:
        name: Name in counters and reports, in kebab-case.
        anchors: Operators (of the standard domain) at which `match` starts; by convention the last
            node of the pattern, so that whatever the rewrite needs stands before it.
        depth: How many steps upstream of the anchor `match` looks. A change within that distance
            wakes the anchor again.
    """

    name: ClassVar[str]
    anchors: ClassVar[tuple[str, ...]]
    depth: ClassVar[int] = 2

    @abc.abstractmethod
    def match(self, node: ir.Node, context: Context) -> M | None:
        """What `rewrite` needs if the pattern ends at this node, else None."""

    def check(self, match: M, context: Context) -> str | None:
        """Why the rewrite is not allowed here, or None when it is. May raise `Refuse` too."""
        return None

    @abc.abstractmethod
    def rewrite(self, match: M, rewriter: Rewriter) -> None:
        """Change the graph through the rewriter."""


class Rewriter:
    """The changes a rule may make; it keeps track of what they touch.

    New nodes go before the insertion point, which is the anchor to begin with. Nodes whose outputs
    nobody reads after a rewrite are removed, with what only they needed.
    """

    def __init__(self, context: Context, anchor: ir.Node) -> None:
        self.context = context
        self._point = anchor
        self._anchor = anchor
        self._fresh: dict[ir.Value, None] = {}
        self.changed: dict[ir.Node, None] = {}
        self.suspects: dict[ir.Node, None] = {}
        self.unread: dict[ir.Value, None] = {}

    def insert_before(self, node: ir.Node) -> None:
        """Put the following nodes before this one."""
        self._point = node

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value | None = None,
        name: str | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one output and return that.

        Args:
            op_type: Operator.
            inputs: Its inputs; None for an optional one that is left out.
            attributes: Python values (int, float, str, sequences, tensors) by name.
            like: A value whose type and shape the output has.
            name: Hint for the output's name.
            domain: Operator domain.
        """
        return self.ops(op_type, inputs, attributes, 1, like=like, name=name, domain=domain)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
        *,
        like: ir.Value | None = None,
        name: str | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Insert a node with several outputs; see `op`."""
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs)
        # Runtimes refuse two nodes of the same name, so none is left to be named later.
        node.name = self.context.unique_name(self._anchor.name or f"node_{op_type}")
        for output in node.outputs:
            hint = name or f"{self._anchor.outputs[0].name or op_type}_{op_type.lower()}"
            output.name = self.context.unique_name(hint)
            if like is not None:
                output.type, output.shape = like.type, _copy(like.shape)
            self._fresh[output] = None
        assert self._point.graph is not None
        self._point.graph.insert_before(self._point, node)
        self.changed[node] = None
        return node.outputs

    def initializer(self, array: np.ndarray, name: str, like: ir.Value | None = None) -> ir.Value:
        """Add a constant where the anchor stands: an initializer, or a node inside a function.

        Args:
            array: The numbers, in their final dtype.
            name: Hint for the name.
            like: A value whose element type is used, where numpy's dtype does not say (int4).
        """
        dtype = like.dtype if like is not None and like.dtype is not None else None
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        tensor = ir.Tensor(array, dtype=dtype) if dtype else ir.tensor(array)
        return self.initializer_tensor(tensor, name)

    def initializer_tensor(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Add a constant that is already a tensor; see `initializer`."""
        unique = self.context.unique_name(name)
        if self.context.in_function(self._anchor):
            value = self.op("Constant", [], {"value": tensor}, name=name)
        else:
            value = ir.Value(name=unique, const_value=tensor)
            assert self._anchor.graph is not None
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        if value.producer() is None:
            tensor.name = unique
            assert self._anchor.graph is not None
            self._anchor.graph.register_initializer(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads ``old`` read ``new``.

        A new value takes over the name, type and shape; so does any value that becomes a graph
        output in the old one's place.

        Raises:
            Refuse: When ``old`` is a graph output that ``new`` cannot stand for (`can_replace`).
        """
        if not can_replace(old, new):
            raise Refuse("a graph output must keep its name and its producer")
        for node, _ in old.uses():
            self.changed[node] = None
        was_output = old.is_graph_output()
        fresh = new in self._fresh
        if was_output or fresh:
            name = old.name
            if fresh or new.type is None:
                new.type = old.type if old.type is not None else new.type
            if fresh or new.shape is None:
                new.shape = _copy(old.shape) if old.shape is not None else new.shape
            old.name = self.context.unique_name(f"{name}_replaced")
            new.name = name
            if old.doc_string:
                new.doc_string = old.doc_string
            new.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._suspect(old)
        if (producer := new.producer()) is not None:
            self.changed[producer] = None

    def replace_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let one input of a node be another value."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self.changed[node] = None
        if old is not None:
            self._suspect(old)

    def set_inputs(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        """Let a node have these inputs, whatever their number."""
        old = [value for value in node.inputs if value is not None]
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        self.changed[node] = None
        for value in old:
            self._suspect(value)

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set an attribute of a node, or remove it with None."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        self.changed[node] = None

    def _suspect(self, value: ir.Value) -> None:
        """Remember that a value lost a reader: its producer may be dead, others may match now."""
        producer = value.producer()
        if producer is not None:
            self.suspects[producer] = None
        else:
            self.unread[value] = None
        for node in value.consumers()[:2]:
            self.changed[node] = None


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether `Rewriter.replace` can let ``new`` stand for ``old``.

    Always, unless ``old`` is a graph output: then ``new`` must be made by a node of the same graph
    and not be an output already, since outputs keep their names.
    """
    if not old.is_graph_output():
        return True
    producer = new.producer()
    return (
        producer is not None
        and producer.graph is old.graph
        and not new.is_graph_output()
        and not new.is_graph_input()
    )


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
    return _Driver(model, rules, max_rewrites).run()


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
        nodes = 0
        for root, _, _ in _roots(self.context.model):
            for node in root.all_nodes():
                nodes += 1
                self._enqueue(node)
        limit = _MOST_CHANGES_PER_NODE * (nodes + 10)
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
        self.outcome.refusals = list(self.refused.values())
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


# Small facts about dead and captured things, shared with the clean-up passes


def is_dead(node: ir.Node) -> bool:
    """Whether nobody reads the node and removing it changes nothing.

    A node of an unknown domain may do something else than compute, so it is never dead, nor is a
    node that holds one in its bodies.
    """
    return (
        is_standard(node)
        and not any(output.is_graph_output() or output.uses() for output in node.outputs)
        and all(is_standard(inner) for inner in _inner_nodes(node))
    )


def drop_node(node: ir.Node) -> None:
    """Remove a dead node, and let the bodies it holds read nothing any more."""
    graph = node.graph
    assert graph is not None
    for inner in _inner_nodes(node):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    graph.remove(node)


def drop_unused_initializer(value: ir.Value) -> None:
    """Remove an initializer that nobody reads, unless it is part of the interface."""
    if (
        value.is_initializer()
        and not value.is_graph_input()
        and not value.is_graph_output()
        and not value.uses()
    ):
        assert value.graph is not None
        assert value.name is not None
        value.graph.initializers.pop(value.name)


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values of outer graphs that the bodies of a control-flow node read."""
    found: dict[ir.Value, None] = {}
    inner = _inner_nodes(node)
    graphs = {each.graph for each in inner}
    for each in inner:
        for value in each.inputs:
            if value is not None and value.graph not in graphs:
                found[value] = None
    return list(found)


def _inner_nodes(node: ir.Node) -> list[ir.Node]:
    nodes: list[ir.Node] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            nodes.extend(attribute.as_graph().all_nodes())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                nodes.extend(graph.all_nodes())
    return nodes


def _roots(model: ir.Model) -> Iterator[tuple[ir.Graph, Mapping[str, int], bool]]:
    yield model.graph, model.opset_imports, False
    for function in model.functions.values():
        yield function.graph, function.opset_imports, True


def _names(model: ir.Model) -> Iterator[str]:
    for root, _, _ in _roots(model):
        for graph in (root, *root.subgraphs()):
            for value in (*graph.inputs, *graph.initializers.values()):
                yield value.name or ""
        for node in root.all_nodes():
            yield node.name or ""
            for value in node.outputs:
                yield value.name or ""


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()
