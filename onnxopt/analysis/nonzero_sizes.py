"""Dynamic sizes that cannot be 0 in any run that does not fail."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.expressions import Atom, Expression
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["nonzero_factors", "nonzero_sizes"]


def nonzero_sizes(graph: ir.Graph, facts: SymbolicFacts) -> frozenset[Atom]:
    """Sizes that nodes which always run (those that lead to an output) need not to be 0.

    Reshape with a -1 divides by the other dimensions, and fails when one of them is 0. Gather fails
    when a constant index is not below the size of its axis.

    Args:
        graph: The main graph. Bodies of control flow may not run, and say nothing.
        facts: What is known of the model's shapes.
    """
    found: set[Atom] = set()
    for node in _live_nodes(graph):
        if not is_standard(node):
            continue
        try:
            if node.op_type == "Reshape":
                found.update(nonzero_factors(_divisors(node, facts)))
            elif node.op_type == "Gather":
                found.update(nonzero_factors(_indexed(node, facts)))
        except Refuse:
            continue
    return frozenset(found)


def nonzero_factors(products: list[Expression]) -> frozenset[Atom]:
    """The factors of expressions that are not 0, as far as they are sizes."""
    return frozenset(
        atom for each in products if len(each.terms) == 1 for atom in each.atoms if atom.nonnegative
    )


def _live_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of the graph itself that some graph output depends on."""
    pending = [value.producer() for value in graph.outputs]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.graph is graph:
            yield node
        pending.extend(value.producer() for value in node.inputs if value is not None)


def _divisors(node: ir.Node, facts: SymbolicFacts) -> list[Expression]:
    """The dimensions beside a -1."""
    target = facts.integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None or [each.constant for each in target.elements].count(-1) != 1:
        return []
    source = facts.shape(node.inputs[0]) or ()
    if int_attribute(node, "allowzero", 0) == 1:
        return list(target.elements)
    # Anything else that is 0 when the model runs copies a size that is not.
    return [
        size
        for element, size in zip(target.elements, source, strict=False)
        if element.constant == 0 or element == size
    ]


def _indexed(node: ir.Node, facts: SymbolicFacts) -> list[Expression]:
    """The size of the axis that a constant index picks from."""
    indices, source = facts.integers(node.inputs[1]), facts.shape(node.inputs[0])
    axis = int_attribute(node, "axis", 0)
    if indices is None or not indices.constants or not source:
        return []
    return [source[axis]] if -len(source) <= axis < len(source) else []
