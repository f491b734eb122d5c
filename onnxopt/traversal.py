"""Walk over the nodes and graphs of a model, bodies and local functions included."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

__all__ = [
    "all_graphs",
    "all_nodes",
    "bodies",
    "forget_nodes",
    "graphs_of",
    "nodes_by_operator",
    "root_graphs",
]

#: Key of `onnx_ir.Model.meta` under which an `_Overview` is kept while nothing changes.
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


@dataclasses.dataclass(frozen=True)
class _Overview:
    nodes: dict[str, list[tuple[int, ir.Node]]]
    graphs: list[ir.Graph]


def nodes_by_operator(model: ir.Model) -> Mapping[str, Sequence[tuple[int, ir.Node]]]:
    """All nodes by operator, of whatever domain, each with its place in the order of `all_nodes`.

    The answer is remembered until `forget_nodes`, which whoever changes the model calls.
    """
    return _overview(model).nodes


def graphs_of(model: ir.Model) -> Sequence[ir.Graph]:
    """All graphs: the main one, those of local functions, and all bodies. Remembered likewise."""
    return _overview(model).graphs


def _overview(model: ir.Model) -> _Overview:
    known: _Overview | None = model.meta.get(_META_NODES)
    if known is None:
        nodes: dict[str, list[tuple[int, ir.Node]]] = collections.defaultdict(list)
        graphs: list[ir.Graph] = []
        place = itertools.count()

        def look(graph: ir.Graph) -> None:
            graphs.append(graph)
            for node in graph:
                nodes[node.op_type].append((next(place), node))
                for body in bodies(node):
                    look(body)

        for root in root_graphs(model):
            look(root)
        known = _Overview(nodes, graphs)
        model.meta[_META_NODES] = known
    return known


def forget_nodes(model: ir.Model) -> None:
    """Say that the model may have other nodes now."""
    model.meta.pop(_META_NODES, None)
