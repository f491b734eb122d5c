"""Move the inside of a control-flow body to where its node stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxopt.rewriting import Context, Refuse, Rewriter
from onnxopt.traversal import bodies

from ..shared.handing_over import require_tensors

__all__ = ["Inliner", "require_movable"]


class Inliner:
    """Moves bodies within one model, and keeps the names of what it moves where it can.

    Bodies that never run together may use the same names, so a moved value or node keeps its own
    only if it is the only one of that name in the model.
    """

    def __init__(self) -> None:
        self._names: Counter[str] | None = None

    def move(
        self,
        body: ir.Graph,
        node: ir.Node,
        rewriter: Rewriter,
        arguments: Mapping[ir.Value, ir.Value] | None = None,
    ) -> list[ir.Value]:
        """Move nodes and initializers of a body before the node that holds it.

        Args:
            body: The body; it is empty afterwards.
            node: The control-flow node.
            rewriter: Is told what changes.
            arguments: A value for each input of the body that is read or is an output.

        Returns:
            What the body's outputs are now.
        """
        graph = node.graph
        assert graph is not None
        if self._names is None:
            self._names = Counter(_names(rewriter.context.model))
        results = list(body.outputs)
        body.outputs.clear()
        standing = dict(arguments or {})
        for initializer in list(body.initializers.values()):
            standing[initializer] = self._move_initializer(initializer, node, rewriter)
        for old, new in standing.items():
            if new is not old:
                old.replace_all_uses_with(new)
        nodes = list(body)
        body.remove(nodes)
        for each in nodes:
            each.name = self._free_name(each.name, rewriter.context)
            for output in each.outputs:
                output.name = self._free_name(output.name, rewriter.context)
            rewriter.suspects[each] = None  # some were only needed by the node itself
        graph.insert_before(node, nodes)
        return [standing.get(result, result) for result in results]

    def _move_initializer(self, value: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
        assert value.graph is not None
        assert value.name is not None
        assert value.const_value is not None
        assert node.graph is not None
        value.graph.initializers.pop(value.name)
        if rewriter.context.in_function(node):  # a function has no initializers
            return rewriter.initializer_tensor(value.const_value, value.name)
        value.name = self._free_name(value.name, rewriter.context)
        node.graph.register_initializer(value)
        return value

    def _free_name(self, name: str | None, context: Context) -> str | None:
        assert self._names is not None
        return name if not name or self._names[name] == 1 else context.unique_name(name)


def require_movable(node: ir.Node, body: ir.Graph, first: int) -> None:
    """Refuse a body whose outputs the node's readers cannot read instead.

    Args:
        node: The control-flow node.
        body: Its body.
        first: Which output of the body belongs to the node's first output.

    Raises:
        Refuse: With the reason.
    """
    if len(body.outputs) != len(node.outputs) + first:
        raise Refuse("the body has another number of outputs")
    made = 0
    for result in body.outputs[first:]:
        producer = result.producer()
        owner = result.graph if producer is None else producer.graph
        if owner is not body or not (
            producer is not None or result.is_graph_input() or result.is_initializer()
        ):
            raise Refuse("an output of the body is made elsewhere")
        made += producer is not None
    if made < len(node.outputs) or len(set(body.outputs)) < len(body.outputs):
        require_tensors(node)


def _names(model: ir.Model) -> Iterator[str]:
    """Names of all values and nodes, one each, in graphs, bodies and functions."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        values = {*graph.inputs, *graph.initializers.values()}
        yield from (value.name or "" for value in values)
        for node in graph:
            yield node.name or ""
            yield from (output.name or "" for output in node.outputs)
            graphs.extend(bodies(node))
