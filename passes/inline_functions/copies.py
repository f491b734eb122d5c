"""Put a copy of a function's body in the place of a call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxopt.rewriting import drop_node
from onnxopt.traversal import all_graphs, all_nodes

__all__ = ["NameScope", "inline_call"]


class NameScope:
    """Names that are taken in a graph and all bodies inside it.

    Args:
        root: The main graph, or the graph of a function.
    """

    def __init__(self, root: ir.Graph) -> None:
        self._values = _Names(value.name for graph in all_graphs(root) for value in _values(graph))
        self._nodes = _Names(node.name for node in all_nodes(root))

    def name_value(self, name: str) -> str:
        """This name, with a number where it is taken; it is taken now."""
        return self._values.take(name)

    def name_node(self, name: str) -> str:
        """The same for the name of a node. Nodes may have no name."""
        return self._nodes.take(name) if name else name


class _Names:
    def __init__(self, names: Iterable[str | None]) -> None:
        self._taken = set(names)
        self._numbers: dict[str, int] = {}  # the last number that was added to a name

    def take(self, name: str) -> str:
        candidate = name
        while candidate in self._taken:
            self._numbers[name] = self._numbers.get(name, 0) + 1
            candidate = f"{name}_{self._numbers[name]}"
        self._taken.add(candidate)
        return candidate


def inline_call(function: ir.Function, call: ir.Node, scope: NameScope) -> None:
    """Replace a call of a function by a copy of its body.

    Args:
        function: The function; it is not changed.
        call: The node, which stands in a graph. It is removed.
        scope: The names that are taken around the call.
    """
    graph = call.graph
    assert graph is not None
    copy = function.clone()
    outputs = list(copy.outputs)
    copy.outputs.clear()
    _bind_attributes(copy, function, call)
    actual = dict(itertools.zip_longest(copy.inputs, call.inputs))
    for formal, value in actual.items():
        for node, index in tuple(formal.uses()):
            node.replace_input_with(index, value)
            if value is None:
                _trim(node)
    _rename(copy.graph, scope)
    nodes = list(copy)
    copy.remove(nodes)
    graph.insert_before(call, nodes)
    given: set[ir.Value] = set()
    for old, new in zip(call.outputs, outputs, strict=False):
        if not old.name:
            continue
        source = actual.get(new, new)
        if source is not new or new in given:  # it has a name and a place of its own already
            assert source is not None
            holder = ir.node("Identity", [source])
            graph.insert_before(call, holder)
            new = holder.outputs[0]
        given.add(new)
        _hand_over(old, new, scope)
    drop_node(call)


def _bind_attributes(copy: ir.Function, function: ir.Function, call: ir.Node) -> None:
    """Replace references to attributes of the function by what the call gives."""
    for node in all_nodes(copy.graph):
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref():
                continue
            assert attribute.ref_attr_name is not None
            parameter = attribute.ref_attr_name
            source = call.attributes.get(parameter)
            if source is None:
                default = function.attributes.get(parameter)
                source = default if default is not None and default.value is not None else None
            if source is None:
                del node.attributes[name]
            elif source.is_ref():
                assert source.ref_attr_name is not None
                node.attributes[name] = ir.RefAttr(name, source.ref_attr_name, source.type)
            else:
                node.attributes[name] = ir.Attr(name, source.type, source.value)


def _trim(node: ir.Node) -> None:
    """Take away inputs at the end that are left out."""
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    node.resize_inputs(count)


def _rename(root: ir.Graph, scope: NameScope) -> None:
    for graph in all_graphs(root):
        for value in _values(graph):
            if value.name and not (graph is root and value.is_graph_input()):
                value.name = scope.name_value(value.name)
    for node in all_nodes(root):
        node.name = scope.name_node(node.name or "")


def _hand_over(old: ir.Value, new: ir.Value, scope: NameScope) -> None:
    """Let a value of the copy take the place of an output of the call."""
    name = old.name
    assert name is not None
    old.name = scope.name_value(f"{name}_inlined")
    new.name = name
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.doc_string = old.doc_string or new.doc_string
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that a graph itself defines."""
    yield from graph.inputs
    yield from list(graph.initializers.values())
    for node in graph:
        yield from node.outputs
