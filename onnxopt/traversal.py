"""Walk over the nodes and graphs of a model, bodies and local functions included."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

__all__ = [
    "all_graphs",
    "all_nodes",
    "bodies",
    "forget_nodes",
    "nodes_by_operator",
    "root_graphs",
]

#: Key of `onnx_ir.Model.meta` under which the nodes by operator are kept while nothing changes.
_META_NODES = "onnxopt.nodes"

_HOLD_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def bodies(node: ir.Node) -> Sequence[ir.Graph]:
    """The graphs that a node holds, in the order of its attributes."""
    attributes = node.attributes.data  # the wrapper's own iteration is slow
    if not attributes:
        return ()
    found: list[ir.Graph] = []
    for attribute in attributes.values():
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


def nodes_by_operator(model: ir.Model) -> Mapping[str, Sequence[tuple[int, ir.Node]]]:
    """All nodes by operator, of whatever domain, each with its place in the order of `all_nodes`.

    The answer is remembered until `forget_nodes`, which whoever changes the model calls.
    """
    known: dict[str, list[tuple[int, ir.Node]]] | None = model.meta.get(_META_NODES)
    if known is None:
        known = collections.defaultdict(list)
        nodes = itertools.chain.from_iterable(map(all_nodes, root_graphs(model)))
        for place, node in enumerate(nodes):
            known[node.op_type].append((place, node))
        model.meta[_META_NODES] = known
    return known


def forget_nodes(model: ir.Model) -> None:
    """Say that the model may have other nodes now."""
    model.meta.pop(_META_NODES, None)
