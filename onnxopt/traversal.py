"""Walk over the nodes and graphs of a model, bodies and local functions included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

__all__ = ["all_graphs", "all_nodes", "bodies", "forget_operators", "operators", "root_graphs"]

#: Key of `onnx_ir.Model.meta` under which the set of operators is kept while nothing changes.
_META_OPERATORS = "onnxopt.operators"

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


def operators(model: ir.Model) -> frozenset[str]:
    """Names of all operators in the model, of whatever domain.

    The answer is remembered until `forget_operators`, which whoever changes the model calls.
    """
    known: frozenset[str] | None = model.meta.get(_META_OPERATORS)
    if known is None:
        known = frozenset(node.op_type for root in root_graphs(model) for node in all_nodes(root))
        model.meta[_META_OPERATORS] = known
    return known


def forget_operators(model: ir.Model) -> None:
    """Say that the model may have other operators now."""
    model.meta.pop(_META_OPERATORS, None)
