"""Walk over the nodes and graphs of a model, bodies and local functions included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["all_graphs", "all_nodes", "bodies", "root_graphs"]

_HOLD_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds, in the order of its attributes."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.data.values():  # the wrapper's own iteration is slow
        if attribute.type not in _HOLD_GRAPHS or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        else:
            found.extend(attribute.as_graphs())
    return found


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph, each followed by the nodes of the bodies it holds."""
    for node in graph:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and the bodies inside it, outer ones first."""
    yield graph
    for node in graph:
        for body in bodies(node):
            yield from all_graphs(body)


def root_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and the graphs of local functions."""
    yield model.graph
    for function in model.functions.values():
        yield function.graph
