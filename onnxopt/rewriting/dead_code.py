"""What nobody reads, and taking it out."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.traversal import all_nodes, bodies

__all__ = ["captured_values", "drop_node", "drop_unused_initializer", "is_dead"]


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
    return [inner for body in bodies(node) for inner in all_nodes(body)]
