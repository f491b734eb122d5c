"""Which graphs lie inside which, and which values of outer graphs they can read.

Bodies of control flow read values of the graphs around them by name. A body may hold a value of the
same name, which then hides the outer one.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.traversal import bodies

__all__ = ["Scopes"]


class Scopes:
    """The graphs below one graph of a model, as they are when the object is made.

    Nodes and values may come and go in the meantime; whoever renames a value says so (`renamed`).
    """

    def __init__(self, root: ir.Graph) -> None:
        #: All graphs, each after the one that it lies in.
        self.graphs: list[ir.Graph] = [root]
        self._outer: dict[ir.Graph, ir.Graph | None] = {root: None}
        self._names: dict[ir.Graph, dict[str, ir.Value]] = {}
        for graph in self.graphs:
            for node in graph:
                for body in bodies(node):
                    self._outer[body] = graph
                    self.graphs.append(body)

    def can_stand_for(self, new: ir.Value, old: ir.Value) -> bool:
        """Whether everything that reads ``old`` can read ``new`` instead, by its name."""
        readers = {use.node.graph for use in old.uses()}
        return all(graph is not None and self._sees(graph, new, old) for graph in readers)

    def renamed(self, graph: ir.Graph) -> None:
        """Forget the names of a graph's values."""
        self._names.pop(graph, None)

    def _sees(self, graph: ir.Graph, value: ir.Value, instead_of: ir.Value) -> bool:
        inner: ir.Graph | None = graph
        while inner is not None and inner is not value.graph:
            hiding = self._names_in(inner).get(value.name or "")
            if hiding is not None and hiding is not instead_of:
                return False
            inner = self._outer.get(inner)
        return inner is not None

    def _names_in(self, graph: ir.Graph) -> dict[str, ir.Value]:
        if graph not in self._names:
            outputs = (value for node in graph for value in node.outputs)
            named = (*graph.inputs, *graph.initializers.values(), *outputs)
            self._names[graph] = {value.name: value for value in named if value.name}
        return self._names[graph]
